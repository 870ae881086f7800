"""How sharp a depth map is at the true boundaries, and whether seams show where tiles meet.

All functions take natural logarithms of depth (H,W): a boundary is a ratio of depths, whatever the unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Lines = tuple[Sequence[int], Sequence[int]]
"""Rows and columns before which a tile begins or after which one ends."""

BOUNDARY_RATIO = 1.15
"""Neighbouring pixels whose depths differ by more than this factor belong to different surfaces."""


def boundary_band(log_truth: Tensor, mask: Tensor, radius: int, ratio: float = BOUNDARY_RATIO) -> Tensor:
    """(H,W) bool: valid pixels at most `radius` (Chebyshev) from a depth discontinuity of the truth."""
    jump = float(torch.log(torch.tensor(ratio)))
    edge = torch.zeros_like(mask)
    across = ((log_truth[:, 1:] - log_truth[:, :-1]).abs() > jump) & mask[:, 1:] & mask[:, :-1]
    down = ((log_truth[1:] - log_truth[:-1]).abs() > jump) & mask[1:] & mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    side, wide = 2 * radius + 1, edge[None, None].float()
    # A square window as a column and then a row: the same, and far less work for a large radius.
    wide = F.max_pool2d(wide, (side, 1), stride=1, padding=(radius, 0))
    wide = F.max_pool2d(wide, (1, side), stride=1, padding=(0, radius))[0, 0] > 0
    return wide & mask


def boundary_error(log_depth: Tensor, log_truth: Tensor, mask: Tensor, radius: int) -> float:
    """Mean absolute error of log-depth within `radius` pixels of the truth's discontinuities.

    log_depth has to be aligned to the truth already. NaN when the truth has no discontinuity.
    """
    band = boundary_band(log_truth, mask, radius)
    return float((log_depth - log_truth)[band].abs().double().mean())


@dataclass(frozen=True)
class Seams:
    """Mean absolute gradients across tile borders (`at`), and at the same places without a border (`off`)."""

    at: float
    off: float

    @property
    def excess(self) -> float:
        """at / off - 1; 0 means that the borders cannot be told from their surroundings."""
        return self.at / self.off - 1


def seams(maps: tuple[Tensor, Tensor], lines: tuple[Lines, Lines], mask: Tensor) -> Seams:
    """Whether borders show, by merging one picture twice, with different tiles.

    maps: two (H,W) results. lines: where their tiles begin and end, as (rows, columns). mask (H,W): pixels
    that count; leave out true discontinuities, which would outweigh everything. The gradient of each map
    across its own borders is compared with the gradient of the other map at the very same pixels: whatever
    the scene, the network or an interpolation does there, both have it, and only a seam makes a difference.
    Lines at the rim and lines of both maps are ignored. Raises ValueError when no line is left.
    """
    total, count = [0.0, 0.0], 0
    for axis in (0, 1):
        own, other = (set(lines[k][axis]) for k in (0, 1))
        usable = mask if axis else mask.T
        for number, places in enumerate((own - other, other - own)):
            first, second = (maps[k] if axis else maps[k].T for k in (number, 1 - number))
            for line in sorted(places):
                if not 0 < line < usable.shape[1]:
                    continue
                chosen = usable[:, line - 1] & usable[:, line]
                count += int(chosen.sum())
                for which, values in enumerate((first, second)):
                    gradient = (values[:, line] - values[:, line - 1]).abs()[chosen]
                    total[which] += float(gradient.double().sum())
    if not count:
        raise ValueError("lines: no border of one map lies where the other has none; use plans that differ")
    return Seams(total[0] / count, total[1] / count)
