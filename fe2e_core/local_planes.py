"""A plane at every pixel of a depth map, from the window beside it that is most like a plane.

The disparity of a plane is affine in pixel coordinates. Every window of (2 radius + 1)^2 pixels gets its
least-squares plane; each pixel then takes, of the windows that contain it, the one with the smallest
residual. So slopes are averaged over many pixels (labels come in BF16 steps), and yet no window reaches
across a crease or a silhouette.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import require_intrinsics


@dataclass(frozen=True)
class LocalPlanes:
    """normal (B, H, W, 3) unit OpenCV, facing the camera; offset (B, H, W), how far the pixel's own
    disparity is off its plane, as a fraction; residual (B, H, W), the window's root mean square of the
    same; shift (B, H, W, 2) int64, where the window's centre lies (rows, columns); valid (B, H, W) bool.
    """

    normal: Tensor
    offset: Tensor
    residual: Tensor
    shift: Tensor
    valid: Tensor


def local_planes(depth: Tensor, intrinsics: Tensor, mask: Tensor, radius: int) -> LocalPlanes:
    """Planes of depth (B, H, W), positive where mask (B, H, W); intrinsics (3, 3) or (B, 3, 3); radius in
    pixels.
    """
    require_intrinsics(intrinsics)
    batch, height, width = depth.shape
    if min(height, width) < 2 * radius + 1:
        raise ValueError(
            f"depth: found {height} x {width} pixels, expected at least {2 * radius + 1} on each side."
        )
    q = torch.where(mask, 1.0 / torch.where(mask, depth, torch.ones_like(depth)), torch.zeros_like(depth))
    scale = q.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    q = (q / scale)[:, None].double()
    ones = torch.ones(2 * radius + 1, dtype=q.dtype, device=q.device)
    ramp = torch.arange(-radius, radius + 1, dtype=q.dtype, device=q.device)
    count = float((2 * radius + 1) ** 2)
    spread = float(ramp.square().sum()) * (2 * radius + 1)

    def window(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
        x = F.conv2d(x, across.reshape(1, 1, 1, -1), padding=(0, radius))
        return F.conv2d(x, down.reshape(1, 1, -1, 1), padding=(radius, 0))[:, 0]

    mean = window(q, ones, ones) / count
    slope_u = window(q, ones, ramp) / spread
    slope_v = window(q, ramp, ones) / spread
    square = window(q * q, ones, ones) / count
    full = window(mask[:, None].to(q.dtype), ones, ones) > count - 0.5
    full[:, :radius] = full[:, height - radius :] = False
    full[:, :, :radius] = full[:, :, width - radius :] = False
    variance = (square - mean * mean - (slope_u**2 + slope_v**2) * spread / count).clamp_min(0)
    rough = variance.sqrt() / mean.clamp_min(1e-12)
    rough = torch.where(full, rough, torch.full_like(rough, torch.inf))

    shift = torch.zeros(batch, height, width, 2, dtype=torch.int64, device=depth.device)
    # float32 from here on: what needed the digits was the difference of squares above
    rough, slope_u, slope_v, mean = rough.float(), slope_u.float(), slope_v.float(), mean.float()
    best = torch.full_like(rough, torch.inf)
    chosen = [torch.zeros_like(rough) for _ in range(3)]
    for down, across in ((a, b) for a in (0, -radius, radius) for b in (0, -radius, radius)):

        def at(x: Tensor, down: int = down, across: int = across) -> Tensor:
            return torch.roll(x, (-down, -across), (1, 2))

        # wrapped windows are those of the border, which are never full
        centred = 0.8 if (down, across) == (0, 0) else 1.0
        candidate = at(rough)
        better = candidate * centred < best
        best = torch.where(better, candidate * centred, best)
        u, v = at(slope_u), at(slope_v)
        for store, value in zip(chosen, (u, v, at(mean) - u * across - v * down), strict=True):
            store.copy_(torch.where(better, value, store))
        shift[..., 0].masked_fill_(better, down)
        shift[..., 1].masked_fill_(better, across)
    slope_u, slope_v, value = chosen
    valid = torch.isfinite(best) & mask & (value > 0)
    own = q[:, 0].float()
    k = intrinsics.to(own)
    fx, fy, cx, cy = (k[..., i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    u = torch.arange(width, dtype=own.dtype, device=q.device) + 0.5 - cx * width
    v = (torch.arange(height, dtype=own.dtype, device=q.device) + 0.5)[:, None] - cy * height
    raw = torch.stack([fx * width * slope_u, fy * height * slope_v, value - u * slope_u - v * slope_v], -1)
    facing = torch.tensor([0.0, 0.0, 1.0], dtype=own.dtype, device=q.device)
    raw = torch.where(valid[..., None], raw, facing)
    return LocalPlanes(
        normal=-F.normalize(raw, dim=-1).float(),
        offset=torch.where(valid, (own / value.clamp_min(1e-12) - 1).abs(), torch.zeros_like(own)).float(),
        residual=torch.where(valid, best, torch.zeros_like(best)).float(),
        shift=shift,
        valid=valid,
    )
