"""The pixels of a depth map as coloured, oriented points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import depth_edges, points_from_depth


@dataclass(frozen=True)
class PointCloud:
    """N points in OpenCV camera axes: `points` (N,3), `normals` (N,3) unit, `colors` (N,3) in [0,1], float32.

    `spacing` (N,) is the distance between neighbouring rays at the point, on a plane that faces the camera.
    """

    points: Tensor
    normals: Tensor
    colors: Tensor
    spacing: Tensor


def point_cloud(
    depth: Tensor,
    intrinsics: Tensor,
    normal: Tensor,
    image: Tensor,
    mask: Tensor | None = None,
    *,
    confidence: Tensor | None = None,
    min_confidence: float = 0.0,
    stride: int = 1,
    edge: float = 0.05,
) -> PointCloud:
    """Cloud of one picture: depth (H,W), intrinsics (3,3) normalised, normal and image (H,W,3), mask (H,W)
    bool.

    Every `stride`-th pixel becomes a point. Pixels beside a depth edge (geometry.depth_edges with the
    relative step `edge`; 0 keeps them) would hang in the air between two surfaces and are left out, as are
    pixels whose `confidence` (H,W) is below `min_confidence`. Raises ValueError for a bad option and where no
    point remains.
    """
    if stride < 1 or edge < 0:
        raise ValueError(f"stride, edge: found {stride}, {edge}; expected at least 1 and at least 0")
    height, width = depth.shape
    depth = depth.to(torch.float32)
    keep = torch.isfinite(depth) & (depth > 0)
    if mask is not None:
        keep &= mask.to(depth.device)
    if edge > 0:
        keep &= ~depth_edges(depth, keep, relative=edge)
    if confidence is not None and min_confidence > 0:
        keep &= confidence.to(depth.device) >= min_confidence
    lattice = torch.zeros_like(keep)
    lattice[::stride, ::stride] = True
    keep &= lattice
    if not bool(keep.any()):
        raise ValueError(
            "point cloud: no point remains; is the mask empty? Lower min_confidence or stride, or set edge "
            "to 0"
        )
    k = intrinsics.to(depth)
    points = points_from_depth(torch.where(keep, depth, torch.ones_like(depth)), k)
    # the wider of the two pixel pitches, so that surfels of non-square pixels still touch
    pitch = max(1.0 / (float(k[0, 0]) * width), 1.0 / (float(k[1, 1]) * height)) * stride
    return PointCloud(
        points=points[keep],
        normals=torch.nn.functional.normalize(normal.to(depth)[keep], dim=-1),
        colors=image.to(depth)[keep][:, :3].clamp(0, 1),
        spacing=depth[keep] * pitch,
    )
