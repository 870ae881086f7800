"""The user's MASK inputs, combined with the mask a geometry carries."""

from __future__ import annotations

import torch
from torch import Tensor


def counted_pixels(geometry_mask: Tensor, mask: Tensor | None) -> Tensor:
    """(B,H,W) bool: pixels that count in the geometry and, if given, in the user's mask (white, above 0.5).

    A mask with one picture serves the whole batch. Raises ValueError where sizes do not fit.
    """
    if mask is None:
        return geometry_mask
    user = mask.unsqueeze(0) if mask.ndim == 2 else mask
    if (
        user.ndim != 3
        or user.shape[1:] != geometry_mask.shape[1:]
        or user.shape[0] not in (1, len(geometry_mask))
    ):
        batch, height, width = geometry_mask.shape
        raise ValueError(
            f"mask: found shape {tuple(mask.shape)}, expected {width}x{height} pixels (width x height) and 1 "
            f"or {batch} "
            "pictures, as the geometry has; resize the mask or connect the one that belongs to this image"
        )
    return geometry_mask & (user.to(geometry_mask.device) > 0.5).to(torch.bool)
