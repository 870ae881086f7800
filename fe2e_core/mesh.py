"""A surface through the pixels of a depth map: a grid mesh, torn where the surface is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import points_from_depth


@dataclass(frozen=True)
class Mesh:
    """N vertices and M triangles in OpenCV camera axes (x right, y down, z forward), all on one device.

    `vertices` (N,3) float32; `faces` (M,3) int64, counter-clockwise seen from the camera; `uvs` (N,2) in
    [0,1], v down, as glTF wants it; `normals` (N,3) unit, the predicted ones, toward the camera.
    """

    vertices: Tensor
    faces: Tensor
    uvs: Tensor
    normals: Tensor


def grid_mesh(
    depth: Tensor,
    intrinsics: Tensor,
    normal: Tensor,
    mask: Tensor | None = None,
    *,
    stride: int = 1,
    edge: float = 0.05,
    max_angle: float = 87.0,
) -> Mesh:
    """Mesh of one picture: depth (H,W) along the axis, intrinsics (3,3) normalised, normal (H,W,3), mask
    (H,W) bool.

    Every `stride`-th pixel becomes a vertex (the last row and column always). Two pixels are connected unless
    their disparities differ by more than the fraction `edge` from what the slope on both sides predicts (0
    turns this off); a triangle is left out if its plane is seen at more than `max_angle` degrees (90 turns
    this off): a softened edge is a steep ramp, not a jump. Vertices without a triangle are left out.

    Raises ValueError for options out of range and where no triangle remains.
    """
    if stride < 1 or edge < 0.0 or not 0.0 < max_angle <= 90.0:
        raise ValueError(
            f"stride, edge, max_angle: found {stride}, {edge}, {max_angle}; "
            "expected at least 1, at least 0, and an angle of up to 90 degrees"
        )
    height, width = depth.shape
    depth = depth.to(torch.float32)
    rows, columns = _every(height, stride, depth.device), _every(width, stride, depth.device)
    points = points_from_depth(depth, intrinsics.to(depth))[rows][:, columns]
    z = depth[rows][:, columns]
    valid = torch.isfinite(z) & (z > 0)
    if mask is not None:
        valid &= mask.to(depth.device)[rows][:, columns]

    disparity = torch.where(valid, 1.0 / torch.where(valid, z, torch.ones_like(z)), torch.zeros_like(z))
    right = _connected(disparity, valid, edge)
    down = _connected(disparity.T, valid.T, edge).T
    index = torch.arange(len(rows) * len(columns), device=depth.device).reshape(len(rows), len(columns))
    faces = _triangles(index, z, right, down, valid)
    flat = points.reshape(-1, 3)
    faces = faces[_seen(flat, faces, max_angle)]
    if len(faces) == 0:
        raise ValueError(
            "mesh: no triangle remains; is the mask empty? Raise edge or max_angle, or lower stride"
        )

    used = torch.zeros(len(flat), dtype=torch.bool, device=depth.device)
    used[faces.flatten()] = True
    renumbered = torch.cumsum(used.to(torch.int64), 0) - 1
    u = ((columns.to(torch.float32) + 0.5) / width).expand(len(rows), -1)
    v = ((rows.to(torch.float32) + 0.5) / height)[:, None].expand(-1, len(columns))
    uvs = torch.stack([u, v], dim=-1).reshape(-1, 2)
    directions = normal.to(depth)[rows][:, columns].reshape(-1, 3)
    return Mesh(
        vertices=flat[used],
        faces=renumbered[faces],
        uvs=uvs[used],
        normals=torch.nn.functional.normalize(directions[used], dim=-1),
    )


def _every(size: int, stride: int, device: torch.device) -> Tensor:
    """0, stride, 2 stride, ... and always the last index, so that the mesh reaches the picture's border."""
    index = torch.arange(0, size, stride, device=device)
    if index[-1] != size - 1:
        index = torch.cat([index, index.new_tensor([size - 1])])
    return index


def _connected(disparity: Tensor, valid: Tensor, edge: float) -> Tensor:
    """(h, w-1) bool: does the surface continue from each pixel to its right neighbour?

    The disparity of a plane is affine in pixels, so a continuing surface keeps the slope of one side at
    least; a comparison of depths themselves would tear every slanted floor.
    """
    both = valid[:, 1:] & valid[:, :-1]
    if edge == 0.0 or disparity.shape[1] < 2:
        return both
    step = disparity[:, 1:] - disparity[:, :-1]
    miss = step.abs()
    if disparity.shape[1] > 2:
        change = (step[:, 1:] - step[:, :-1]).abs()
        usable = both[:, 1:] & both[:, :-1]
        from_left = miss.clone()
        from_left[:, 1:] = torch.where(usable, change, miss[:, 1:])
        from_right = miss.clone()
        from_right[:, :-1] = torch.where(usable, change, miss[:, :-1])
        miss = torch.minimum(from_left, from_right)
    return both & (miss <= edge * torch.maximum(disparity[:, 1:], disparity[:, :-1]))


def _triangles(index: Tensor, z: Tensor, right: Tensor, down: Tensor, valid: Tensor) -> Tensor:
    """(M,3): two triangles per square of pixels, split along the flatter diagonal, counter-clockwise to the
    camera."""
    # corners: a b
    #          c d    with y down; seen from the camera a, c, b turns counter-clockwise
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    top, bottom, left, rightmost = right[:-1], right[1:], down[:, :-1], down[:, 1:]
    log_z = torch.log(torch.where(valid, z, torch.ones_like(z)))
    main = (log_z[:-1, :-1] - log_z[1:, 1:]).abs()
    counter = (log_z[:-1, 1:] - log_z[1:, :-1]).abs()
    # A torn square keeps the half whose two sides hold, whichever diagonal that needs.
    halves_counter = (top & left).to(torch.int8) + (bottom & rightmost).to(torch.int8)
    halves_main = (left & bottom).to(torch.int8) + (top & rightmost).to(torch.int8)
    use_main = (halves_main > halves_counter) | ((halves_main == halves_counter) & (main < counter))
    parts = [
        torch.stack([a, c, b], -1)[top & left & ~use_main],
        torch.stack([b, c, d], -1)[bottom & rightmost & ~use_main],
        torch.stack([a, c, d], -1)[left & bottom & use_main],
        torch.stack([a, d, b], -1)[top & rightmost & use_main],
    ]
    return torch.cat(parts)


def _seen(points: Tensor, faces: Tensor, max_angle: float) -> Tensor:
    """(M,) bool: triangles whose plane is not seen edge-on."""
    p, q, r = (points[faces[:, i]] for i in range(3))
    across = torch.linalg.cross(q - p, r - p)
    ray = (p + q + r) / 3
    cosine = -(across * ray).sum(-1) / (across.norm(dim=-1) * ray.norm(dim=-1)).clamp_min(1e-30)
    return cosine > math.cos(math.radians(max_angle)) if max_angle < 90 else across.norm(dim=-1) > 0
