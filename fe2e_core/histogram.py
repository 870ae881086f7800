"""How depth is distributed: counts and a picture of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .colors import apply_color_map
from .percentiles import percentile


@dataclass(frozen=True)
class Histogram:
    """`counts` (bins,) int64 of equal intervals from `low` to `high`; `percentiles` maps 2, 25, 50, 75, 98 to
    values."""

    counts: Tensor
    low: float
    high: float
    percentiles: dict[int, float]


def depth_histogram(values: Tensor, mask: Tensor, bins: int = 256) -> Histogram:
    """Count the (B,H,W) values inside the (B,H,W) mask. Raises ValueError if the mask is empty or bins below
    2."""
    if bins < 2:
        raise ValueError(f"bins: found {bins}, expected at least 2")
    counted = mask & torch.isfinite(values)
    if not bool(counted.any()):
        raise ValueError("histogram: no pixel counts; is the mask empty?")
    inside = values[counted].to(torch.float32).cpu()
    low, high = inside.min().item(), inside.max().item()
    span = max(high - low, 1e-12)
    index = ((inside - low) / span * bins).long().clamp_(0, bins - 1)
    wanted = (2, 25, 50, 75, 98)
    found = percentile(inside, wanted).tolist()
    return Histogram(torch.bincount(index, minlength=bins), low, high, dict(zip(wanted, found, strict=True)))


def draw_histogram(
    histogram: Histogram, width: int = 768, height: int = 384, color_map: str = "spectral", unit: str = ""
) -> Tensor:
    """(height, width, 3) picture in [0,1]: bars in the colours of the map, lines at 2, 50 and 98 %,
    labelled."""
    import numpy as np
    from PIL import Image, ImageDraw

    bottom, top = 28, 14
    plot = max(8, height - bottom - top)
    bins = len(histogram.counts)
    position = torch.arange(width) * bins // width
    tallest = max(int(histogram.counts.max()), 1)
    bar = (histogram.counts[position].float() / tallest * plot).round().long()
    picture = torch.full((height, width, 3), 0.12)
    rows = torch.arange(height)[:, None]
    filled = (rows >= height - bottom - bar) & (rows < height - bottom)
    colors = apply_color_map(position.float() / (bins - 1), color_map).expand(height, width, 3)
    picture = torch.where(filled.unsqueeze(-1), colors, picture)
    canvas = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    draw = ImageDraw.Draw(canvas)
    span = max(histogram.high - histogram.low, 1e-12)
    for part in (2, 50, 98):
        value = histogram.percentiles[part]
        x = round((value - histogram.low) / span * (width - 1))
        draw.line([(x, top), (x, height - bottom)], fill=(255, 255, 255))
        draw.text(
            (x + 3 if x < width * 0.8 else x - 3, 1),
            f"{part} %: {value:.4g}",
            fill=(255, 255, 255),
            anchor="la" if x < width * 0.8 else "ra",
        )
    draw.text((4, height - bottom + 8), f"{histogram.low:.4g}", fill=(220, 220, 220))
    draw.text(
        (width - 4, height - bottom + 8),
        f"{histogram.high:.4g} {unit}".strip(),
        fill=(220, 220, 220),
        anchor="ra",
    )
    return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255.0)
