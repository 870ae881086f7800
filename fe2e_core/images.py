"""Checking pictures and masks that users connect."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def check_image(image: Tensor, name: str = "image") -> Tensor:
    """A connected IMAGE, the input `name` -> (B,H,W,3) float32 in [0,1] on the CPU.

    One channel is repeated, a fourth (alpha) is dropped with one message, values outside [0,1] are clamped with one
    warning. Raises ValueError for anything else: no pictures, no pixels, another number of channels, NaN or Inf.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"{name}: found {shape}; expected (batch, height, width, channels) with 1, 3 or 4 channels. Connect an IMAGE")
    if image.numel() == 0:
        raise ValueError(f"{name}: found {tuple(image.shape)}, which has no pixels; expected at least one picture of 1x1. "
                         "The node before this one gave an empty batch")
    image = image.detach().to("cpu", torch.float32)
    if image.shape[-1] == 4:
        logger.info("FE2E: the picture's alpha channel is not used; invert it into a MASK to leave pixels out")
        image = image[..., :3]
    elif image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    if not bool(image.isfinite().all()):
        bad = int((~image.isfinite()).any(dim=-1).sum())
        raise ValueError(f"{name}: {bad} pixels are NaN or infinite; expected numbers in [0,1]. "
                         "Repair the picture before this node (a black result of a half-precision VAE is a common cause)")
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        logger.warning("FE2E: picture values from %.3g to %.3g are clamped to [0,1]; tone-map HDR pictures before", low, high)
        image = image.clamp(0, 1)
    return image.contiguous()


def check_mask(mask: Tensor | None, image: Tensor) -> Tensor:
    """A connected MASK of pixels that count, or None -> (B,H,W) bool, true where a pixel counts.

    image: (B,H,W,3). One mask may serve a whole batch. Raises ValueError when the size differs, when a value is
    NaN, or when nothing counts in some picture.
    """
    b, h, w = image.shape[:3]
    if mask is None:
        return torch.ones(b, h, w, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or mask.shape[-2:] != (h, w) or (mask.ndim == 3 and mask.shape[0] not in (1, b)):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask: found {shape}; expected one mask, or one per picture, of the picture's size {(h, w)}. "
                         "Leave it unconnected to count every pixel (Load Image gives an empty 64x64 mask to pictures without alpha)")
    if not bool(mask.isfinite().all()):
        raise ValueError("mask: some values are NaN or infinite; expected numbers in [0,1]. Repair the mask before this node")
    counted = (mask.detach().cpu() > 0.5).reshape(-1, h, w).expand(b, h, w).contiguous()
    empty = [i for i in range(b) if not bool(counted[i].any())]
    if empty:
        raise ValueError(f"mask: no pixel counts in picture {empty[0]} (values above 0.5 count); invert the mask, or leave it unconnected")
    return counted
