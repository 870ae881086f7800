"""What a network would say of a picture whose depth is known: normalised, blurred, bent and noisy truth.

For tests of everything that comes after the network, where a trained one would be slow or beside the point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Flaws:
    """bend: amplitude of smooth, large-scale error. blur: standard deviation in pixels. noise: amplitude."""

    bend: float = 0.12
    blur: float = 0.8
    noise: float = 0.01


def predict_log_depth(log_depth: torch.Tensor, mask: torch.Tensor, generator: torch.Generator,
                      flaws: Flaws = Flaws()) -> torch.Tensor:  # noqa: B008 - frozen
    """(h,w) log-depth -> (h,w) in [-1,1] as Eq. 7 normalises it to its own 2 % and 98 % percentiles."""
    valid = log_depth[mask] if bool(mask.any()) else log_depth.flatten()
    low, high = torch.quantile(valid, torch.tensor([0.02, 0.98]))
    label = 2 * (log_depth - low) / (high - low).clamp(min=1e-4) - 1
    height, width = label.shape
    bend = F.interpolate(torch.randn(1, 1, 4, 4, generator=generator), (height, width), mode="bicubic")[0, 0]
    noise = F.interpolate(torch.randn(1, 1, height // 2, width // 2, generator=generator), (height, width),
                          mode="bilinear")[0, 0]
    label = blur(label.clamp(-1, 1), flaws.blur) + flaws.bend * bend + flaws.noise * noise
    return label.clamp(-1, 1).bfloat16().float()


def blur(values: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (h,w) with repeated borders."""
    radius = max(1, round(3 * sigma))
    positions = torch.arange(-radius, radius + 1, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (positions / sigma).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(values[None, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[0, 0]
