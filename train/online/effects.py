"""What a phone's camera does to a picture and leaves its geometry alone, beyond `train.augmentation`: depth of field and
JPEG's blocks. Batches, on any device."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.augmentation import augment_pictures

_BLURS = (0.0, 1.0, 2.2, 4.0)
"""Standard deviations in pixels between which depth of field is mixed."""
_BLOCK = 8


def _column(rng: np.random.Generator, count: int, low: float, high: float, like: Tensor) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, (count, 1, 1)).astype(np.float32)).to(like.device)


def _blurred(pictures: Tensor, deviation: float) -> Tensor:
    if not deviation:
        return pictures
    reach = math.ceil(2.5 * deviation)
    places = torch.arange(-reach, reach + 1, device=pictures.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(pictures, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[:, :, None, :], groups=3), kernel[..., None], groups=3)


def defocused(pictures: Tensor, depth: Tensor, valid: Tensor, rng: np.random.Generator, share: float = 0.25) -> Tensor:
    """Depth of field for `share` of the pictures (B,3,H,W): blur grows with the difference of reciprocal depths (B,H,W)
    from a plane in focus, the thin lens' circle of confusion. Sky, which is not `valid`, is infinitely far."""
    count = len(pictures)
    inverse = torch.where(valid, 1 / depth.clamp_min(1e-3), 0.0)
    nearest = inverse.flatten(1).amax(1)[:, None, None]
    focus = nearest * _column(rng, count, 0.05, 1.0, pictures)
    strength = _column(rng, count, 1.0, 6.0, pictures)
    strength = torch.where(_column(rng, count, 0, 1, pictures) < share, strength, 0.0)
    wanted = ((inverse - focus).abs() / nearest.clamp_min(1e-6) * strength).clamp(0, _BLURS[-1])
    levels = [_blurred(pictures, deviation) for deviation in _BLURS]
    result = levels[0]
    for (low, high), level in zip(zip(_BLURS, _BLURS[1:], strict=False), levels[1:], strict=True):
        mix = ((wanted - low) / (high - low)).clamp(0, 1)[:, None]
        result = torch.lerp(result, level, mix)
    return result


def _cosines(device: torch.device) -> Tensor:
    """(8,8) orthonormal DCT-II: rows are frequencies."""
    n = torch.arange(_BLOCK, dtype=torch.float64)
    matrix = torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / (2 * _BLOCK)) * math.sqrt(2 / _BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device)


def compressed(pictures: Tensor, rng: np.random.Generator, share: float = 0.4) -> Tensor:
    """JPEG's loss for `share` of the pictures (B,3,H,W) in [0,1]: 8x8 cosine transform, frequencies rounded to steps that
    grow with frequency (a plane fitted to the standard's luminance table) and with a random quality. Sides are multiples of 8."""
    b, c, h, w = pictures.shape
    cosines = _cosines(pictures.device)
    blocks = pictures.reshape(b, c, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK).permute(0, 1, 2, 4, 3, 5)
    frequencies = cosines @ blocks @ cosines.T
    n = torch.arange(_BLOCK, device=pictures.device)
    table = (10 + 7.5 * (n[:, None] + n[None])) / 255
    quality = torch.exp(_column(rng, b, math.log(0.1), math.log(2.0), pictures))[..., None, None, None]
    step = table * quality
    rounded = cosines.T @ ((frequencies / step).round() * step) @ cosines
    rounded = rounded.permute(0, 1, 2, 4, 3, 5).reshape(b, c, h, w).clamp(0, 1)
    chosen = _column(rng, b, 0, 1, pictures)[..., None] < share
    return torch.where(chosen, rounded, pictures)


def phone_pictures(pictures: Tensor, depth: Tensor, valid: Tensor, rng: np.random.Generator) -> Tensor:
    """All of it, in the order in which it happens: lens, sensor and development, file."""
    return compressed(augment_pictures(defocused(pictures, depth, valid, rng), rng), rng)
