"""Soft depth edges brought to the edges of the picture.

A network says that there is a step in depth, and where only to within its own blur. The picture, which is sharper,
says where. So depth is averaged over pixels of like colour and like depth (a joint bilateral filter, in steps of
16, 8, 4, 2 and 1 pixels), over no more than an edge is wide: a network with sharp edges keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = (16, 8, 4, 2, 1)
"""Distances in pixels between the samples of each pass; 16 is the length of one of the network's patches."""

LIKE_COLOUR = 0.06
"""Standard deviation of colours (root of the sum of squares over three channels in [0,1]) of one surface."""

LIKE_DEPTH = 0.3
"""Standard deviation of log-depth, in units of its range [-1,1], that an edge may be sharpened over."""

SMALL = 0.04
"""Changes of log-depth below about this are left out: they are relief and slopes, not edges."""

_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_CELL, _WINDOW = 4, 17  # edges are measured in windows of 68 pixels
_BLOCK = 512  # pixels of a side worked on at once


def sharpen_soft_edges(log_depth: Tensor, picture: Tensor, steps: tuple[int, ...] = STEPS) -> Tensor:
    """(H,W) log-depth in [-1,1] whose soft edges lie where the colours of picture (H,W,3) in [0,1] change.

    Memory beside input and result: a few blocks of 512x512 pixels. Raises ValueError when the sizes differ.
    """
    if picture.shape != (*log_depth.shape, 3):
        raise ValueError(f"picture: found {tuple(picture.shape)}, expected {(*log_depth.shape, 3)}")
    colours = picture.movedim(-1, 0)
    width, contrast = edge_width(log_depth)
    now = log_depth
    for step in steps:
        # Nothing changes by more than there is contrast.
        share = torch.where(contrast > SMALL / 2, (2 * width / step - 1).clamp(0, 1), 0.0)
        now = _one_pass(now, colours, share, step)
    change = now - log_depth
    return log_depth + change * change.square() / (change.square() + SMALL**2)


def edge_width(log_depth: Tensor) -> tuple[Tensor, Tensor]:
    """((H,W) width in pixels of the steepest edge around each pixel, (H,W) range of log-depth there).

    The width is what the range would take at the steepest slope; all within windows of 68 pixels.
    """
    across, down = log_depth.diff(dim=1).abs(), log_depth.diff(dim=0).abs()
    slope = torch.maximum(F.pad(across, (0, 1)), F.pad(down, (0, 0, 0, 1)))
    values = torch.stack([log_depth, -log_depth, slope])[:, None]
    values = F.max_pool2d(values, _CELL, ceil_mode=True)
    values = F.max_pool2d(values, (_WINDOW, 1), 1, (_WINDOW // 2, 0))
    high, low, steepest = F.max_pool2d(values, (1, _WINDOW), 1, (0, _WINDOW // 2))[:, 0]
    contrast = high + low
    size = tuple(log_depth.shape)
    both = torch.stack([contrast / steepest.clamp(min=1e-6), contrast])[None]
    return tuple(F.interpolate(both, size, mode="bilinear", align_corners=False)[0])


@dataclass(frozen=True)
class _Block:
    """Rows and columns of a block, and the same with a margin around them where the picture has one."""

    inner: tuple[slice, slice]
    outer: tuple[slice, slice]

    def inside(self, values: Tensor) -> Tensor:
        """The block without its margin, of (h,w) with it."""
        top, left = (i.start - o.start for i, o in zip(self.inner, self.outer, strict=True))
        height, width = (i.stop - i.start for i in self.inner)
        return values[top : top + height, left : left + width]


def _blocks(height: int, width: int, margin: int) -> Iterator[_Block]:
    for top in range(0, height, _BLOCK):
        for left in range(0, width, _BLOCK):
            bottom, right = min(height, top + _BLOCK), min(width, left + _BLOCK)
            outer = (slice(max(0, top - margin), min(height, bottom + margin)),
                     slice(max(0, left - margin), min(width, right + margin)))
            yield _Block((slice(top, bottom), slice(left, right)), outer)


def _one_pass(depth: Tensor, colours: Tensor, share: Tensor, step: int) -> Tensor:
    """(H,W) depth moved by `share` of the way to the average of like pixels up to two steps away."""
    result = depth.clone()
    for block in _blocks(*depth.shape, 2 * step):
        part = share[block.inner]
        if not bool((part > 0).any()):
            continue
        old = depth[block.inner]
        average = block.inside(_average(depth[block.outer], colours[:, *block.outer], step))
        result[block.inner] = old + part * (average - old)
    return result


def _average(depth: Tensor, colours: Tensor, step: int) -> Tensor:
    """(h,w) averages over 5x5 samples, `step` pixels apart, of like colour and depth."""
    height, width = depth.shape
    guide = torch.cat([colours / LIKE_COLOUR, depth[None] / LIKE_DEPTH])
    reach = 2 * step
    around = F.pad(torch.cat([guide, depth[None]])[None], (reach,) * 4, mode="replicate")[0]
    total, weights = torch.zeros_like(depth), torch.zeros_like(depth)
    for row, vertical in enumerate(_TAPS):
        for column, horizontal in enumerate(_TAPS):
            there = around[:, row * step : row * step + height, column * step : column * step + width]
            unlike = (there[:-1] - guide).square_().sum(0)
            weight = unlike.mul_(-0.5).exp_().mul_(vertical * horizontal)
            total.addcmul_(weight, there[-1])
            weights += weight
    return total / weights
