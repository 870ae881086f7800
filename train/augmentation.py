"""Photometric augmentation: what cameras do to a picture and leaves its geometry alone."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


def augment_pictures(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures (B,3,H,W) in [0,1] -> the same, each with its own exposure, colour, contrast, blur and noise."""
    count, device = len(pictures), pictures.device

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32)).to(device)

    def chance(probability: float) -> Tensor:
        return torch.from_numpy(rng.random((count, 1, 1, 1)) < probability).to(device)

    gamma = torch.exp(draw(-0.5, 0.5))
    result = (pictures * torch.exp(draw(-0.4, 0.3))).clamp(0, 1) ** gamma
    cast = torch.from_numpy(np.exp(rng.normal(0, 0.08, (count, 3, 1, 1))).astype(np.float32))
    result = result * cast.to(device)
    grey = (result * torch.tensor(_LUMA, device=device)[:, None, None]).sum(1, keepdim=True)
    saturation = torch.where(chance(0.1), torch.zeros(1, device=device), draw(0.4, 1.5))
    result = grey + (result - grey) * saturation
    middle = result.mean((1, 2, 3), keepdim=True)
    result = middle + (result - middle) * draw(0.7, 1.2)
    kernel = torch.tensor([0.25, 0.5, 0.25], device=device)
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(result, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    result = torch.lerp(result, soft, torch.where(chance(0.6), draw(0, 1), torch.zeros(1, device=device)))
    if device.type == "cpu":
        noise = torch.from_numpy(rng.standard_normal(result.shape, dtype=np.float32))
    else:  # drawn where it is needed: millions of numbers
        source = torch.Generator(device).manual_seed(int(rng.integers(1 << 62)))
        noise = torch.randn(result.shape, generator=source, device=device)
    result = result + noise * torch.where(chance(0.5), draw(0, 0.05), torch.zeros(1, device=device))
    return result.clamp(0, 1)
