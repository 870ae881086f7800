"""Where depth and normals agree: a confidence for every pixel, from two predictions that check each other.

Three signs of a wrong pixel. The local plane of the depth is tilted against the predicted normals (tilted
patches, relief that is only in the depth); a pixel hangs between two surfaces (blurred edges); a region is
torn off its surroundings although the normals run on unchanged across its whole outline (blocks shifted in
depth), which no local comparison can see, because a shifted surface has the same normals.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import depth_edges, pixel_rays
from .local_planes import local_planes

HALF_CONFIDENCE_DEGREES = 15.0
"""Disagreement at which the confidence is one half."""

_SLACK = 0.01  # part of the log range that rounding and noise may take a pixel off its plane
_TEAR = 0.02  # part of the log range that counts as a jump


def disagreement(
    depth: Tensor, normal: Tensor, mask: Tensor, intrinsics: Tensor, image: Tensor | None = None
) -> Tensor:
    """How far depth and normals contradict each other, as an angle in degrees: (B, H, W), zero outside the
    mask.

    Args: depth (B, H, W) positive, along the axis, right up to one scale; normal (B, H, W, 3) unit OpenCV;
    mask (B, H, W) bool; intrinsics (3, 3) or (B, 3, 3); image (B, H, W, 3) in [0, 1], if given, its edges
    explain jumps.
    """
    _, height, width = depth.shape
    radius = max(2, round(max(height, width) / 256))
    mask = mask & torch.isfinite(depth) & (depth > 0)
    log_range = _log_range(depth, mask)
    planes = local_planes(depth, intrinsics, mask, radius)
    expected = _window_normals(normal, mask, radius, planes.shift)
    tilt = torch.rad2deg(2 * torch.asin(((expected - planes.normal).norm(dim=-1) / 2).clamp(0, 1)))
    focal = (intrinsics[..., 0, 0] * width).reshape(-1, 1, 1).to(planes.offset)
    hanging = (planes.offset - _SLACK * log_range).clamp_min(0) * focal / radius
    local = (tilt.square() + torch.rad2deg(torch.atan(hanging)).square()).sqrt()
    local = torch.where(planes.valid, local, torch.zeros_like(local))
    # Relief agrees on its crests and a blurred edge on its ends: what surrounds a pixel counts as much as
    # the pixel.
    around = _mean(local.square(), planes.valid, 2 * radius).sqrt()
    combined = (0.5 * local.square() + 0.5 * around.square()).sqrt()
    torn = torch.stack(
        [
            _torn_regions(d, n, m, k, r, None if image is None else image[b])
            for b, (d, n, m, k, r) in enumerate(
                zip(depth, normal, mask, intrinsics.expand(len(depth), 3, 3), log_range, strict=True)
            )
        ]
    )
    # Squared: every real object has a bit of outline where nothing shows, only a block has nearly all of it.
    return torch.where(mask, torch.hypot(combined, 90.0 * torn.square()), torch.zeros_like(combined))


def agreement(
    depth: Tensor, normal: Tensor, mask: Tensor, intrinsics: Tensor, image: Tensor | None = None
) -> Tensor:
    """Confidence (B, H, W) in [0, 1]: 1 / (1 + (disagreement / 15 degrees)^2), 0 outside the mask."""
    angle = disagreement(depth, normal, mask, intrinsics, image)
    return torch.where(mask, 1 / (1 + (angle / HALF_CONFIDENCE_DEGREES).square()), torch.zeros_like(angle))


def _log_range(depth: Tensor, mask: Tensor) -> Tensor:
    """Spread of ln depth between the 2 % and 98 % percentiles of each picture, (B, 1, 1)."""
    out = []
    for d, m in zip(depth, mask, strict=True):
        values = torch.log(d[m])
        values = values[:: max(1, values.numel() // 100_000)].sort().values
        if values.numel() < 2:
            out.append(torch.ones((), dtype=depth.dtype, device=depth.device))
            continue
        low, high = values[round(0.02 * (len(values) - 1))], values[round(0.98 * (len(values) - 1))]
        out.append((high - low).clamp_min(1e-3))
    return torch.stack(out)[:, None, None]


def _mean(values: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Mean of the valid values (B, H, W) in a window; 0 where there are none."""
    size = 2 * radius + 1

    def box(x: Tensor) -> Tensor:
        x = F.avg_pool2d(x[:, None], (1, size), 1, (0, radius))
        return F.avg_pool2d(x, (size, 1), 1, (radius, 0))[:, 0]

    weight = valid.to(values.dtype)
    return box(values * weight) / box(weight).clamp_min(1e-6)


def _window_normals(normal: Tensor, mask: Tensor, radius: int, shift: Tensor) -> Tensor:
    """Mean predicted normal of the window that each pixel chose, unit (B, H, W, 3)."""
    batch, height, width, _ = normal.shape
    means = torch.stack([_mean(normal[..., c].float(), mask, radius) for c in range(3)], -1)
    rows = (torch.arange(height, device=normal.device)[:, None] + shift[..., 0]).clamp(0, height - 1)
    cols = (torch.arange(width, device=normal.device) + shift[..., 1]).clamp(0, width - 1)
    index = (rows * width + cols).reshape(batch, -1, 1).expand(-1, -1, 3)
    return F.normalize(means.reshape(batch, -1, 3).gather(1, index).reshape(normal.shape), dim=-1)


def _torn_regions(
    depth: Tensor, normal: Tensor, mask: Tensor, intrinsics: Tensor, log_range: Tensor, image: Tensor | None
) -> Tensor:
    """Share (H, W) in [0, 1] of a region's outline where depth jumps and neither normals nor picture say why.

    Regions are what remains connected once pixels at jumps are taken out, on a grid about 256 pixels wide.
    Of two regions the smaller is blamed.
    """
    from scipy import ndimage  # only here: labelling connected regions has no counterpart in torch

    height, width = depth.shape
    step = max(1, round(max(height, width) / 256))
    small = (slice(step // 2, None, step), slice(step // 2, None, step))
    d, m = depth[small], mask[small]
    n = F.normalize(
        torch.stack([_mean(normal[None, ..., c].float(), mask[None], step)[0] for c in range(3)], -1), dim=-1
    )
    n = n[small]
    tear = float(_TEAR * log_range)
    edges = depth_edges(d[None], m[None], relative=tear)[0]
    found, count = ndimage.label((~edges & m).cpu().numpy())
    labels = torch.from_numpy(found.astype("int64")).to(depth.device)
    labels = torch.where(m, _grow(labels, 3), torch.zeros_like(labels))
    area = torch.bincount(labels.flatten(), minlength=count + 1).double().cpu()
    rays = pixel_rays(height, width, intrinsics).to(depth)[small]
    colour = None if image is None else image[small].to(depth)
    outline, unexplained = (
        torch.zeros(count + 1, dtype=torch.float64),
        torch.zeros(count + 1, dtype=torch.float64),
    )
    reach = 2  # beyond the pixels that an edge marks
    for axis in (0, 1):
        size = d.shape[axis]
        if size <= 2 * reach + 1:
            continue

        def side(x: Tensor, first: bool, axis: int = axis, size: int = size) -> Tensor:
            return x.narrow(axis, 0 if first else 2 * reach - 1, size - 2 * reach + 1)

        one, two = side(labels, True), side(labels, False)
        border = (one != two) & (one > 0) & (two > 0)
        mean = F.normalize(side(n, True) + side(n, False), dim=-1)
        # the step that a surface with this normal would make between the two pixels
        expected = torch.log(
            ((mean * side(rays, True)).sum(-1) / (mean * side(rays, False)).sum(-1)).clamp(1e-3, 1e3)
        )
        step_found = torch.log((side(d, False) / side(d, True)).clamp(1e-6, 1e6))
        jump = (step_found - expected).abs() > tear
        turn = (side(n, True) * side(n, False)).sum(-1)
        silent = jump & (turn > math.cos(math.radians(12)))
        if colour is not None:
            silent = silent & ((side(colour, True) - side(colour, False)).abs().amax(-1) < 0.12)
        for mine, other in ((one, two), (two, one)):
            index = mine[border].cpu()
            blame = (area[other[border].cpu()] / (area[other[border].cpu()] + area[index])) * silent[
                border
            ].double().cpu()
            outline.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))
            unexplained.index_add_(0, index, blame)
    share = torch.where(outline >= 8, unexplained / outline.clamp_min(1), torch.zeros_like(outline))
    share[0] = 0.0
    fine = share.to(depth)[labels]
    rows = (torch.arange(height, device=depth.device) // step).clamp(max=fine.shape[0] - 1)
    cols = (torch.arange(width, device=depth.device) // step).clamp(max=fine.shape[1] - 1)
    return fine[rows][:, cols]


def _grow(labels: Tensor, times: int) -> Tensor:
    """Give unlabelled (0) pixels the label of a neighbour, `times` pixels deep."""
    for _ in range(times):
        near = F.max_pool2d(labels.to(torch.float32)[None, None], 3, 1, 1)[0, 0].to(labels.dtype)
        labels = torch.where(labels == 0, near, labels)
    return labels
