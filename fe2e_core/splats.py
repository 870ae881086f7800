"""Points as small oriented discs: 3D gaussians that are flat along the predicted normal (surfels)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .pointcloud import PointCloud

_SH_0 = 0.28209479177387814
"""Value of the constant spherical harmonic, 1 / (2 sqrt(pi)): stored colour = (colour - 1/2) / this."""

_THINNESS = 0.05
_STEEPEST = 0.1
"""Smallest cosine that stretches a disc; beyond it (84 degrees) discs would become needles."""


@dataclass(frozen=True)
class Splats:
    """N gaussians in OpenCV camera axes, which are also those of 3D gaussian splatting (y down, z forward).

    `positions` (N,3); `scales` (N,3) standard deviations along the own axes; `rotations` (N,4) unit
    quaternions w, x, y, z from own axes to camera axes (the third own axis is the normal); `opacities` (N,1)
    in [0,1]; `sh` (N,1,3) constant spherical-harmonic colour.
    """

    positions: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    sh: Tensor


def surfels(cloud: PointCloud, *, size: float = 0.7, opacity: float = 0.98) -> Splats:
    """One disc per point, wide enough to close the surface as the camera sees it.

    `size` is the standard deviation in pixel distances (0.6 to 0.9 closes a surface without blurring it).
    Along the direction in which the surface leans away a pixel covers 1 / cos of its angle more, and so does
    the disc.
    """
    if not size > 0 or not 0 < opacity <= 1:
        raise ValueError(
            f"size, opacity: found {size}, {opacity}; expected a positive size and 0 < opacity <= 1"
        )
    n = cloud.normals
    ray = torch.nn.functional.normalize(cloud.points, dim=-1)
    cosine = -(n * ray).sum(-1, keepdim=True)
    # where a predicted normal looks away from the camera, its disc shows its back; the shape is the same
    lean = ray + cosine * n
    steep = lean.norm(dim=-1, keepdim=True) > 1e-4
    helper = torch.where(
        n[:, :1].abs() < 0.9,
        n.new_tensor([1.0, 0.0, 0.0]).expand_as(n),
        n.new_tensor([0.0, 1.0, 0.0]).expand_as(n),
    )
    first = torch.where(steep, lean, helper - (helper * n).sum(-1, keepdim=True) * n)
    first = torch.nn.functional.normalize(first, dim=-1)
    second = torch.linalg.cross(n, first)
    rotation = torch.stack([first, second, n], dim=-1)
    across = size * cloud.spacing
    along = across / cosine.abs().squeeze(-1).clamp_min(_STEEPEST)
    return Splats(
        positions=cloud.points,
        scales=torch.stack([along, across, across * _THINNESS], dim=-1),
        rotations=quaternion_from_matrix(rotation),
        opacities=torch.full_like(cloud.points[:, :1], opacity),
        sh=((cloud.colors - 0.5) / _SH_0).unsqueeze(1),
    )


def quaternion_from_matrix(rotation: Tensor) -> Tensor:
    """Rotation matrices (N,3,3) -> unit quaternions (N,4) w, x, y, z with w >= 0.

    The matrix K of Bar-Itzhack (2000) has the quaternion as an eigenvector; its row with the largest diagonal
    is that quaternion up to scale, well conditioned for every rotation.
    """
    m = rotation
    d = m.diagonal(dim1=-2, dim2=-1)
    trace = d.sum(-1)
    squares = torch.cat(
        [(1 + trace)[:, None], 1 + 2 * d - trace[:, None]], dim=-1
    )  # 4 w^2, 4 x^2, 4 y^2, 4 z^2
    wx, wy, wz = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    xy, xz, yz = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    w2, x2, y2, z2 = squares.unbind(-1)
    table = torch.stack(
        [
            torch.stack([w2, wx, wy, wz], -1),
            torch.stack([wx, x2, xy, xz], -1),
            torch.stack([wy, xy, y2, yz], -1),
            torch.stack([wz, xz, yz, z2], -1),
        ],
        dim=1,
    )
    best = squares.argmax(-1)
    q = torch.nn.functional.normalize(table[torch.arange(len(m), device=m.device), best], dim=-1)
    return torch.where(q[:, :1] < 0, -q, q)
