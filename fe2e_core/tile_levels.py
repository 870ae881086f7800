"""One level of a large picture in tiles, on top of the coarser level: layout from below, detail from the tiles.

A tile that sees a sixteenth of a picture knows its detail but little of its layout: whether a wall recedes, where
the floor is. So levels double in size; each is fitted to the one before and only adds what that one is too small
to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiling import TilePlan, TileSolution, merge_log_depth, solve_tiles

LAYOUT = 1 / 6
"""Standard deviation, in shorter sides of a tile, of the Gaussian that parts layout from detail.

What is wider than about half a tile comes from the coarser level.
"""

MOST_CONTRAST = 1.5
"""A tile's contrast is at most this many times what least squares say."""

_REFERENCE_WEIGHT = 2.0  # a coarser level that itself came from tiles is worth more than a neighbour's rim


def add_level(plan: TilePlan, tiles: Sequence[Tensor], coarser: Tensor) -> Tensor:
    """(H,W) log-depth in [-1,1] of a level.

    tiles: (h,w) log-depths in [-1,1] in the plan's order. coarser: (H,W), the coarser level enlarged to this one.
    """
    solution = solve_tiles(plan, tiles, coarser, reference_weight=_REFERENCE_WEIGHT)
    solution = with_full_contrast(plan, tiles, coarser, solution)
    details = []
    for number, tile in enumerate(tiles):
        # Tile by tile: neighbours that disagree about the layout would leave a slope where they overlap.
        placed = (tile * solution.scale[number] + solution.shift[number]).float()
        details.append(_detail(placed - plan.cut(coarser, number), plan))
    one = torch.ones_like(solution.scale)
    return (coarser + merge_log_depth(plan, details, TileSolution(one, 0 * one))).clamp(-1, 1)


def add_normal_level(plan: TilePlan, normals: Tensor, coarser: Tensor) -> Tensor:
    """(H,W,3) unit normals of a level.

    normals: (H,W,3) unit vectors, the tiles' blended. coarser: (H,W,3), the coarser level enlarged to this one, of
    any length.
    """
    coarser = F.normalize(coarser, dim=-1)
    change = normals - coarser
    detail = torch.stack([_detail(change[..., axis], plan) for axis in range(3)], dim=-1)
    summed = coarser + detail
    certain = summed.norm(dim=-1, keepdim=True) > 1e-3
    return torch.where(certain, F.normalize(summed, dim=-1), coarser)


def with_full_contrast(plan: TilePlan, tiles: Sequence[Tensor], coarser: Tensor,
                       solution: TileSolution) -> TileSolution:
    """The solution with every tile's scale divided by its correlation with the coarser level.

    Least squares give too small a scale where the two differ: what the coarser level lacks counts as the tile's
    error. The ratio of standard deviations, which is theirs divided by the correlation, takes neither for the
    truth. A tile that agrees with the coarser level keeps its scale; none gets more than MOST_CONTRAST times it.
    """
    scale, shift = solution.scale.clone(), solution.shift.clone()
    cell = 8
    for number, tile in enumerate(tiles):
        fine, coarse = (F.avg_pool2d(x[None, None].float(), cell)[0, 0].double().flatten()
                        for x in (tile, plan.cut(coarser, number)))
        fine, coarse = fine - fine.mean(), coarse - coarse.mean()
        energy = float((fine.square().mean() * coarse.square().mean()).sqrt())
        correlation = float((fine * coarse).mean()) / energy if energy > 1e-9 else 1.0
        if correlation <= 0:
            continue
        factor = min(MOST_CONTRAST, max(1.0, 1 / correlation))
        # About the tile's mean: contrast changes, the place stays.
        shift[number] += (1 - factor) * scale[number] * float(tile.mean())
        scale[number] *= factor
    return TileSolution(scale, shift)


def _detail(change: Tensor, plan: TilePlan) -> Tensor:
    """(H,W) without its layout."""
    return change - _smooth(change, LAYOUT * min(plan.tile_height, plan.tile_width))


def _smooth(values: Tensor, sigma: float) -> Tensor:
    """(H,W) blurred by a Gaussian of `sigma` pixels, by way of a lattice of sigma / 6."""
    height, width = values.shape
    cell = max(1.0, sigma / 6)
    size = (max(1, round(height / cell)), max(1, round(width / cell)))
    small = F.interpolate(values[None, None], size, mode="area")
    for axis, length in ((0, height), (1, width)):
        spread = sigma * size[axis] / length
        reach = min(math.ceil(3 * spread), size[axis] - 1)
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / spread).square())
        kernel = (kernel / kernel.sum()).view((1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1))
        padding = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
        # Mirrored: repeating the rim would give it half of all weight there, and its detail would go.
        small = F.conv2d(F.pad(small, padding, mode="reflect"), kernel)
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[0, 0]
