"""A small median that takes single pixels out of a picture and leaves its edges where they are."""

from __future__ import annotations

import torch
from torch import Tensor


def median_of_nine(x: Tensor, mask: Tensor) -> Tensor:
    """Median of three along rows, then along columns, of x (B, H, W); only where mask (B, H, W) bool holds for all
    three, and as it was elsewhere.
    """
    for dim in (2, 1):
        last = x.shape[dim] - 1
        before, after = (torch.cat(p, dim) for p in _neighbours(x, dim, last))
        known_before, known_after = (torch.cat(p, dim) for p in _neighbours(mask, dim, last))
        low, high = torch.minimum(before, after), torch.maximum(before, after)
        middle = torch.minimum(torch.maximum(x, low), high)
        x = torch.where(known_before & known_after & mask, middle, x)
    return x


def _neighbours(x: Tensor, dim: int, last: int) -> tuple[list[Tensor], list[Tensor]]:
    """Pieces of x one pixel before and after along dim, its rim repeated."""
    return (
        [x.narrow(dim, 0, 1), x.narrow(dim, 0, last)],
        [x.narrow(dim, 1, last), x.narrow(dim, last, 1)],
    )
