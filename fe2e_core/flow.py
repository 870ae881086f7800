"""Small image motion between two pictures of a shot: pyramidal Lucas-Kanade, and how alike places look.

Only the rest is measured that is left after a first guess of the correspondence, so large camera motions do
not matter. Brightness may change: windows are compared after their mean and spread are taken out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TEXTURE = 0.01  # spread of grey in a window below which nothing can be followed
_MOST_STRETCH = 0.5  # pixels per pixel; unrelated pictures match by tearing, frames of a shot rarely do


def grey(image: Tensor) -> Tensor:
    """(H, W, 3) in [0, 1] -> (H, W) luminance (Rec. 709 weights, on the values as they are)."""
    return image @ image.new_tensor([0.2126, 0.7152, 0.0722])


def follow(
    first: Tensor, second: Tensor, guess: Tensor, radius: int = 3, levels: int = 3, rounds: int = 5
) -> tuple[Tensor, Tensor]:
    """Where each pixel of the first picture is in the second: (H, W, 2) and how alike they look: (H, W).

    Args: first, second (H, W) grey; guess (H, W, 2) positions in pixels, x then y, pixel centres at
    integers. radius: of the windows that are followed, at most a quarter of the picture. Likeness is the
    correlation of the two windows, -1 to 1; 0 where the motion tears the window, for with enough freedom
    anything can be found anywhere; nan where the first has no texture or the window leaves the second picture.
    """
    found = guess.to(first)
    for level in reversed(range(levels)):
        factor = 2**level
        if min(first.shape) < 8 * factor * radius:
            continue
        one, two = (_smaller(x, factor) for x in (first, second))
        at = _smaller_map(found, factor)
        start = at
        one, two = _normalised(one, 2 * radius), _normalised(two, 2 * radius)
        for _ in range(rounds):
            at = at + _step(one, *_sample(two, at), radius)
            # windows overlap, so neighbours that move apart would drive each other on
            at = torch.stack([_mean(x, radius) for x in (at - start).unbind(-1)], -1) + start
        found = found + _larger_map(at - start, found.shape[:2], factor)
    alike = likeness(first, second, found, radius)
    torn = torch.isfinite(alike) & (_stretch(found) > _MOST_STRETCH)
    return found, torch.where(torn, torch.zeros_like(alike), alike)


def shifted_guess(first: Tensor, second: Tensor) -> Tensor:
    """Positions (H, W, 2) in the second picture if it were the first one, shifted: by phase correlation."""
    height, width = first.shape
    window = torch.hann_window(height, dtype=first.dtype)[:, None] * torch.hann_window(
        width, dtype=first.dtype
    )
    one, two = (torch.fft.rfft2((x - x.mean()) * window) for x in (first, second))
    cross = one.conj() * two
    peak = int(torch.fft.irfft2(cross / cross.abs().clamp_min(1e-12), s=(height, width)).argmax())
    dy, dx = peak // width, peak % width
    # a shift beyond half the picture is one to the other side
    dy, dx = (dy + height // 2) % height - height // 2, (dx + width // 2) % width - width // 2
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x + dx, y + dy], -1).to(first)


def likeness(first: Tensor, second: Tensor, at: Tensor, radius: int = 3) -> Tensor:
    """Correlation (H, W), -1 to 1, of windows about each pixel of the first picture and about its place `at`
    (H, W, 2) in the second; nan where there is no texture or no picture.
    """
    other, inside = _sample(second, at)
    count = _mean(inside, radius)
    mean_one, mean_two = (_mean(x * inside, radius) / count.clamp_min(1e-6) for x in (first, other))
    spread_one, spread_two, both = (
        (_mean(x * y * inside, radius) / count.clamp_min(1e-6) - mx * my)
        for x, y, mx, my in (
            (first, first, mean_one, mean_one),
            (other, other, mean_two, mean_two),
            (first, other, mean_one, mean_two),
        )
    )
    usable = (spread_one > _TEXTURE**2) & (inside > 0) & (count > 0.5)
    found = both / (spread_one * spread_two.clamp_min(_TEXTURE**2)).clamp_min(1e-12).sqrt()
    return torch.where(usable, found.clamp(-1, 1), torch.full_like(found, torch.nan))


def _stretch(at: Tensor) -> Tensor:
    """(H, W) how far neighbours, one pixel apart, are moved differently: norm of the displacement's slopes."""
    return torch.hypot(
        torch.linalg.vector_norm(torch.gradient(at, dim=1)[0] - at.new_tensor([1.0, 0.0]), dim=-1),
        torch.linalg.vector_norm(torch.gradient(at, dim=0)[0] - at.new_tensor([0.0, 1.0]), dim=-1),
    )


def _step(first: Tensor, other: Tensor, inside: Tensor, radius: int) -> Tensor:
    """One Gauss-Newton step (H, W, 2) of all windows, at most one pixel long; both pictures are normalised and
    the second is warped to the first.
    """
    difference = first - other
    # the mean of both gradients: the step is then right to second order
    gx, gy = (torch.gradient(first + other, dim=d)[0] / 2 for d in (1, 0))
    xx, xy, yy, ex, ey = (
        _mean(value * inside, radius)
        for value in (gx * gx, gx * gy, gy * gy, gx * difference, gy * difference)
    )
    # A little stiffness: a window with an edge but no corner moves across the edge only.
    stiff = 0.01 * (xx + yy) + 1e-6
    xx, yy = xx + stiff, yy + stiff
    step = torch.stack([yy * ex - xy * ey, xx * ey - xy * ex], -1) / (xx * yy - xy * xy)[..., None]
    return step / torch.linalg.vector_norm(step, dim=-1, keepdim=True).clamp_min(1.0)


def _normalised(x: Tensor, radius: int) -> Tensor:
    """Without the local mean and spread, so that brightness may change."""
    x = x - _mean(x, radius)
    return x / (_mean(x * x, radius) + _TEXTURE**2).sqrt()


def _sample(picture: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Picture at positions (H, W, 2), and 1.0 where they are inside."""
    height, width = picture.shape
    size = at.new_tensor([width, height])
    grid = (2 * at + 1) / size - 1
    values = F.grid_sample(
        picture[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]
    inside = ((at >= -0.5) & (at <= size - 0.5)).all(-1)
    return values, inside.to(picture)


def _mean(x: Tensor, radius: int) -> Tensor:
    size = 2 * radius + 1
    # one direction after the other: the same mean, by far fewer sums
    rows = F.avg_pool2d(x[None, None], (1, size), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(rows, (size, 1), 1, (radius, 0), count_include_pad=False)[0, 0]


def _smaller(x: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return x
    size = (x.shape[0] // factor, x.shape[1] // factor)
    return F.interpolate(x[None, None], size, mode="area")[0, 0]


def _smaller_map(at: Tensor, factor: int) -> Tensor:
    """Positions on the grid of `_smaller`."""
    if factor == 1:
        return at
    height, width = at.shape[0] // factor, at.shape[1] // factor
    scale = at.new_tensor([width / at.shape[1], height / at.shape[0]])
    coarse = F.interpolate(at.permute(2, 0, 1)[None], (height, width), mode="area")[0].permute(1, 2, 0)
    return (coarse + 0.5) * scale - 0.5


def _larger_map(moved: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    """Displacements on the grid of `_smaller`, on the fine grid."""
    if factor == 1:
        return moved
    scale = moved.new_tensor([size[1] / moved.shape[1], size[0] / moved.shape[0]])
    fine = F.interpolate(moved.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0]
    return fine.permute(1, 2, 0) * scale
