"""Large pictures in tiles: every tile's log-depth brought to one scale, merged without seams.

A network that has seen pictures of one size says most about pictures of that size. So a large picture is
predicted once as a whole, which gives its layout, and once in overlapping tiles, which give its detail. Each
tile comes normalised to its own depth range (Eq. 7), so its log-depth is right up to a scale and a shift.
`solve_tiles` finds all of them together: tiles must agree where they overlap, and with the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 16
"""Tiles start at multiples of this many pixels, so that they share one lattice of samples."""

SATURATED = 0.98
"""Beyond this log-depth the range [-1, 1] may have cut a value off: it proves nothing about scale."""

TRIM = 0.125
"""Part of an overlap, at either end, in which the tile that begins or ends there does not count."""

FINE = 0.02
"""Disagreement in log-depth units of the whole picture below which residuals are squared, not absolute."""

_ROUNDS = 15


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of a picture of `height` x `width` lie; all sides are multiples of STEP.

    tops, lefts: first rows and columns of the tiles. Tile number `row * len(lefts) + column` covers
    `tile_height` x `tile_width` pixels from (tops[row], lefts[column]).
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def corners(self) -> Iterator[tuple[int, int]]:
        """(top, left) of every tile, in order."""
        for top in self.tops:
            for left in self.lefts:
                yield top, left

    def cut(self, values: Tensor, number: int) -> Tensor:
        """The part of (H,W,...) under a tile."""
        top, left = self.tops[number // len(self.lefts)], self.lefts[number % len(self.lefts)]
        return values[top : top + self.tile_height, left : left + self.tile_width]


def plan_tiles(height: int, width: int, tile_height: int, tile_width: int, overlap: float) -> TilePlan:
    """Evenly spread tiles that overlap their neighbours by `overlap` of their size or a little more.

    A side shorter than the tile's gets one tile of its own length. Raises ValueError for sides that are not
    multiples of STEP, or an overlap outside [0.1, 0.75].
    """
    if not 0.1 <= overlap <= 0.75:
        raise ValueError(f"overlap: found {overlap:g}, expected 0.1 to 0.75 of a tile")
    sides = {"height": height, "width": width, "tile_height": tile_height, "tile_width": tile_width}
    for name, size in sides.items():
        if size < STEP or size % STEP:
            raise ValueError(f"{name}: found {size}, expected a multiple of {STEP}")
    tile_height, tile_width = min(tile_height, height), min(tile_width, width)
    return TilePlan(height, width, tile_height, tile_width,
                    _starts(height, tile_height, overlap), _starts(width, tile_width, overlap))


def _starts(size: int, tile: int, overlap: float) -> tuple[int, ...]:
    free = (size - tile) // STEP
    if not free:
        return (0,)
    stride = max(1, math.floor(tile * (1 - overlap) / STEP))
    count = -(-free // stride)
    return tuple(STEP * (i * free // count) for i in range(count + 1))


def _ramp(size: int, before: int, after: int) -> Tensor:
    """(size,) weights: rising over the overlap with the tile before, falling over that with the tile after.

    Raised cosines over the overlap without TRIM at either end: no step in value or slope, and what the
    network says at the very rim of a tile, where it sees least, hardly counts.
    """
    positions = torch.arange(size, dtype=torch.float32) + 0.5
    ramp = torch.ones(size)
    for overlap, distance in ((before, positions), (after, size - positions)):
        if overlap:
            inside = ((distance / overlap - TRIM) / (1 - 2 * TRIM)).clamp(0, 1)
            ramp = ramp * (0.5 - 0.5 * torch.cos(math.pi * inside))
    # Never nothing: where tiles overlap more than their neighbours only, weights may all be close to 0.
    return ramp.clamp(min=1e-6)


def _side_ramps(starts: Sequence[int], tile: int) -> list[Tensor]:
    """One ramp for each tile along a side."""
    ends = [start + tile for start in starts]
    ramps = []
    for i, start in enumerate(starts):
        before = ends[i - 1] - start if i else 0
        after = ends[i] - starts[i + 1] if i + 1 < len(starts) else 0
        ramps.append(_ramp(tile, before, after))
    return ramps


def feathers(plan: TilePlan) -> list[Tensor]:
    """(h,w) blending weight of every tile, positive."""
    rows = _side_ramps(plan.tops, plan.tile_height)
    columns = _side_ramps(plan.lefts, plan.tile_width)
    return [row[:, None] * column[None, :] for row in rows for column in columns]


def borders(plan: TilePlan) -> tuple[list[int], list[int]]:
    """Rows and columns where tiles begin and where they end, the picture's rim included."""
    rows = [edge for top in plan.tops for edge in (top, top + plan.tile_height)]
    columns = [edge for left in plan.lefts for edge in (left, left + plan.tile_width)]
    return rows, columns


@dataclass(frozen=True)
class TileSolution:
    """scale (T,) >= 0 and shift (T,), float64: tile i is scale[i] * y + shift[i] in the reference's units."""

    scale: Tensor
    shift: Tensor


def _lattice(plan: TilePlan) -> int:
    """Pixels per lattice cell: fine enough for hundreds of samples in a tile, coarse enough to be quick."""
    return 8 if min(plan.tile_height, plan.tile_width) <= 256 else STEP


def _pool(values: Tensor, cell: int) -> Tensor:
    """Means over cells, (H,W) -> (H/cell, W/cell): compares tiles and the blurrier whole at one sharpness."""
    return F.avg_pool2d(values[None, None].float(), cell)[0, 0].double()


def solve_tiles(plan: TilePlan, tiles: Sequence[Tensor], reference: Tensor, *,
                reference_weight: float = 0.5) -> TileSolution:
    """Scale and shift of every tile's log-depth, by joint robust least squares.

    tiles: (h,w) log-depths in [-1,1], in the plan's order. reference: (H,W), the whole picture's log-depth in
    [-1,1]. Minimises, over cells where neither value is cut off by the range, the absolute residuals (squares
    when small) of `s_i y_i + t_i - reference`, times `reference_weight`, and of `s_i y_i + t_i - (s_j y_j + t_j)`
    in each overlap. A tile that contradicts the reference (s < 0) is made flat. Raises ValueError for wrong
    shapes.
    """
    if len(tiles) != len(plan) or tuple(reference.shape) != (plan.height, plan.width):
        raise ValueError(f"tiles: found {len(tiles)} of them and a reference of {tuple(reference.shape)}, "
                         f"expected {len(plan)} and {(plan.height, plan.width)}")
    for number, tile in enumerate(tiles):
        if tuple(tile.shape) != (plan.tile_height, plan.tile_width):
            raise ValueError(f"tile {number}: found {tuple(tile.shape)}, "
                             f"expected {(plan.tile_height, plan.tile_width)}")
    system = _System(plan, tiles, reference, reference_weight)
    flat = torch.zeros(len(plan), dtype=torch.bool)
    solution = system.solve(flat)
    for _ in range(3):
        contrary = (solution.scale < 0) & ~flat
        if not bool(contrary.any()):
            break
        flat |= contrary
        solution = system.solve(flat)
    return TileSolution(solution.scale.clamp(min=0), solution.shift)


class _System:
    """The equations: rows of (tile i, y_i, tile j or -1, y_j, right side, weight)."""

    def __init__(self, plan: TilePlan, tiles: Sequence[Tensor], reference: Tensor,
                 reference_weight: float) -> None:
        cell = _lattice(plan)
        self.count = len(plan)
        pooled = [_pool(tile, cell) for tile in tiles]
        whole = _pool(reference, cell)
        corners = [(top // cell, left // cell) for top, left in plan.corners()]
        h, w = plan.tile_height // cell, plan.tile_width // cell
        i_s, yi_s, j_s, yj_s, right_s, weight_s = [], [], [], [], [], []

        def add(i: int, yi: Tensor, j: int, yj: Tensor, right: Tensor, weight: float, usable: Tensor) -> None:
            n = int(usable.sum())
            i_s.append(torch.full((n,), i))
            yi_s.append(yi[usable])
            j_s.append(torch.full((n,), j))
            yj_s.append(yj[usable])
            right_s.append(right[usable])
            weight_s.append(torch.full((n,), weight, dtype=torch.float64))

        for i, (top, left) in enumerate(corners):
            y, seen = pooled[i], whole[top : top + h, left : left + w]
            usable = (y.abs() < SATURATED) & (seen.abs() < SATURATED)
            if int(usable.sum()) < 8:  # an almost flat or cut-off tile still needs its place
                usable = torch.ones_like(usable)
            add(i, y, -1, torch.zeros_like(y), seen, reference_weight, usable)
        for i, (top, left) in enumerate(corners):
            for j in self._later_neighbours(i, len(plan.tops), len(plan.lefts)):
                other_top, other_left = corners[j]
                t0, t1 = max(top, other_top), min(top, other_top) + h
                l0, l1 = max(left, other_left), min(left, other_left) + w
                if t1 <= t0 or l1 <= l0:
                    continue
                yi = pooled[i][t0 - top : t1 - top, l0 - left : l1 - left]
                yj = pooled[j][t0 - other_top : t1 - other_top, l0 - other_left : l1 - other_left]
                add(i, yi, j, yj, torch.zeros_like(yi), 1.0, (yi.abs() < SATURATED) & (yj.abs() < SATURATED))
        self.i, self.yi = torch.cat(i_s), torch.cat(yi_s)
        self.j, self.yj = torch.cat(j_s), torch.cat(yj_s)
        self.right, self.weight = torch.cat(right_s), torch.cat(weight_s)
        self.paired = self.j >= 0

    @staticmethod
    def _later_neighbours(number: int, rows: int, columns: int) -> Iterator[int]:
        """The neighbours (eight of them in all) that come later in the order."""
        row, column = divmod(number, columns)
        for dr, dc in ((0, 1), (1, -1), (1, 0), (1, 1)):
            if row + dr < rows and 0 <= column + dc < columns:
                yield (row + dr) * columns + column + dc

    def residuals(self, solution: TileSolution) -> Tensor:
        left = solution.scale[self.i] * self.yi + solution.shift[self.i]
        other = solution.scale[self.j.clamp(min=0)] * self.yj + solution.shift[self.j.clamp(min=0)]
        return left - torch.where(self.paired, other, 0.0) - self.right

    def solve(self, flat: Tensor) -> TileSolution:
        """Iteratively reweighted least squares; `flat` (T,) bool: tiles whose scale is held at 0."""
        weight = self.weight.clone()
        solution = self._step(weight, flat)
        for _ in range(_ROUNDS):
            # The convex end of robustness: absolute residuals, squares only below what a network is good for.
            robust = 1 / (self.residuals(solution).square() + FINE**2).sqrt()
            solution = self._step(self.weight * robust, flat)
        return solution

    def _step(self, weight: Tensor, flat: Tensor) -> TileSolution:
        """One weighted least-squares solution; unknowns are interleaved (scale, shift)."""
        size = 2 * self.count
        matrix = torch.zeros(size * size, dtype=torch.float64)
        right = torch.zeros(size, dtype=torch.float64)
        one = torch.ones_like(self.yi)
        j = self.j.clamp(min=0)
        gone = torch.where(self.paired, 1.0, 0.0)
        columns = ((2 * self.i, self.yi), (2 * self.i + 1, one), (2 * j, -self.yj * gone), (2 * j + 1, -gone))
        for a, va in columns:
            right.index_add_(0, a, weight * va * self.right)
            for b, vb in columns:
                matrix.index_add_(0, a * size + b, weight * va * vb)
        matrix = matrix.view(size, size)
        # A tile of one depth leaves its scale open: a touch of ridge closes it.
        diagonal = torch.full((size,), 1e-6 * float(weight.sum()) / max(1, self.count), dtype=torch.float64)
        diagonal[0::2] += torch.where(flat, 1e9 * float(weight.sum()), 0.0)
        matrix = matrix + torch.diag(diagonal)
        both = torch.linalg.solve(matrix, right)
        return TileSolution(both[0::2], both[1::2])


class TileMerger:
    """Collects tiles into one picture, weighted by their feathers; holds (C,H,W), however many the tiles."""

    def __init__(self, plan: TilePlan, channels: int) -> None:
        self._plan = plan
        self._feathers = feathers(plan)
        self._corners = list(plan.corners())
        self._sum = torch.zeros(channels, plan.height, plan.width)
        self._weight = torch.zeros(plan.height, plan.width)

    def add(self, number: int, values: Tensor) -> None:
        """values (C,h,w) of one tile."""
        top, left = self._corners[number]
        h, w = self._plan.tile_height, self._plan.tile_width
        feather = self._feathers[number]
        self._sum[:, top : top + h, left : left + w] += values.float() * feather
        self._weight[top : top + h, left : left + w] += feather

    def result(self) -> Tensor:
        """(C,H,W) weighted means."""
        return self._sum / self._weight


def merge_log_depth(plan: TilePlan, tiles: Sequence[Tensor], solution: TileSolution) -> Tensor:
    """(H,W) log-depth in the reference's units, in [-1,1].

    Tiles at their solved scale and shift, blended; then what blending bent is straightened (`_straighten`).
    """
    placed = [(tile * solution.scale[n] + solution.shift[n]).float() for n, tile in enumerate(tiles)]
    merger = TileMerger(plan, 1)
    for number, tile in enumerate(placed):
        merger.add(number, tile[None])
    return (merger.result()[0] + _straighten(plan, placed)).clamp(-1, 1)


def _straighten(plan: TilePlan, placed: Sequence[Tensor]) -> Tensor:
    """(H,W) smooth correction that spreads what two tiles disagree on over their size, not their overlap.

    Blending turns a disagreement into a slope across the overlap. The blend of the tiles' own gradients has no
    such slope, so we look for the map with these gradients that stays near the blend over lengths of a tile:
    the minimum of |grad c - (blended gradients - gradients of the blend)|^2 + (pi / tile)^2 c^2, a screened
    Poisson equation, solved with cosines (reflecting borders) on the lattice.
    """
    cell = _lattice(plan) // 2
    h, w = plan.tile_height // cell, plan.tile_width // cell
    value = torch.zeros(2, plan.height // cell, plan.width // cell)
    across = torch.zeros(2, value.shape[1], value.shape[2] - 1)
    down = torch.zeros(2, value.shape[1] - 1, value.shape[2])
    for (top, left), tile, feather in zip(plan.corners(), placed, feathers(plan), strict=True):
        y, f = (F.avg_pool2d(x[None, None], cell)[0, 0] for x in (tile, feather))
        rows, columns = slice(top // cell, top // cell + h), slice(left // cell, left // cell + w)
        value[:, rows, columns] += torch.stack([f * y, f])
        f_across, f_down = (f[:, 1:] + f[:, :-1]) / 2, (f[1:] + f[:-1]) / 2
        across[:, rows, columns.start : columns.stop - 1] += torch.stack([f_across * y.diff(dim=1), f_across])
        down[:, rows.start : rows.stop - 1, columns] += torch.stack([f_down * y.diff(dim=0), f_down])
    blend = value[0] / value[1]
    # Where tiles touch at a corner of the lattice only, no gradient was seen: nothing to correct.
    missing_x = torch.where(across[1] > 0, across[0] / across[1] - blend.diff(dim=1), 0.0)
    missing_y = torch.where(down[1] > 0, down[0] / down[1] - blend.diff(dim=0), 0.0)
    sources = F.pad(missing_x, (1, 0)) - F.pad(missing_x, (0, 1))
    sources = sources + F.pad(missing_y, (0, 0, 1, 0)) - F.pad(missing_y, (0, 0, 0, 1))
    correction = _screened_poisson(sources.double(), (math.pi / min(h, w)) ** 2).float()
    size = (plan.height, plan.width)
    return F.interpolate(correction[None, None], size, mode="bicubic", align_corners=False)[0, 0]


def _screened_poisson(sources: Tensor, screening: float) -> Tensor:
    """The (H,W) solution c of -laplace c + screening c = sources with reflecting borders, unit grid."""
    height, width = sources.shape
    mirrored = torch.cat([sources, sources.flip(0)], dim=0)
    spectrum = torch.fft.fft2(torch.cat([mirrored, mirrored.flip(1)], dim=1))
    rows = 2 - 2 * torch.cos(math.pi * torch.arange(2 * height, dtype=torch.float64) / height)
    columns = 2 - 2 * torch.cos(math.pi * torch.arange(2 * width, dtype=torch.float64) / width)
    solved = torch.fft.ifft2(spectrum / (rows[:, None] + columns[None, :] + screening)).real
    return solved[:height, :width]


class NormalMerger:
    """Blends tiles of unit vectors (h,w,3) on the sphere: weighted mean directions, normalised at the end."""

    def __init__(self, plan: TilePlan) -> None:
        self._merger = TileMerger(plan, 3)

    def add(self, number: int, normals: Tensor) -> None:
        """normals (h,w,3) of one tile; their length does not count."""
        self._merger.add(number, F.normalize(normals.float(), dim=-1).movedim(-1, 0))

    def result(self) -> Tensor:
        """(H,W,3) unit vectors."""
        return F.normalize(self._merger.result().movedim(0, -1), dim=-1)
