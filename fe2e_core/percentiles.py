"""Exact percentiles of any number of values.

In torch 2.11 and before, `torch.quantile` refuses more than 2^24 elements, which a single 4100x4100 depth map exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch


def percentile(
    values: torch.Tensor, q: float | Sequence[float], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The `q` percent point(s) of `values` where `mask` is true, linearly interpolated between order
    statistics.

    `values` any shape, finite where counted; `mask` bool of the same shape; `q` in [0, 100]. Returns float32
    of shape () for a number and (len(q),) for a sequence, on the device of `values`. The same definition as
    numpy's and torch's default; exact and deterministic (a selection on the CPU, no sampling, no histogram).

    Raises ValueError for q outside [0, 100], a mask of another shape, nothing to count, or NaN/Inf counted.
    """
    points = (float(q),) if isinstance(q, (int, float)) else tuple(float(p) for p in q)
    if any(not 0.0 <= p <= 100.0 for p in points):
        raise ValueError(f"q: found {points}, expected percentages from 0 to 100")
    if mask is not None:
        if mask.shape != values.shape:
            raise ValueError(
                f"mask: found shape {tuple(mask.shape)}, expected that of values, {tuple(values.shape)}"
            )
        values_counted = values[mask.to(device=values.device, dtype=torch.bool)]
    else:
        values_counted = values
    flat = values_counted.detach().to(dtype=torch.float32, device="cpu").reshape(-1).numpy()
    if flat.size == 0:
        raise ValueError("values: no element is counted, expected at least one; is the mask empty?")
    if not np.isfinite(flat).all():
        raise ValueError(
            "values: NaN or Inf among the counted values, expected finite numbers; mask them out first"
        )

    positions = [p / 100.0 * (flat.size - 1) for p in points]
    lower = [math.floor(p) for p in positions]
    upper = [math.ceil(p) for p in positions]
    ordered = np.partition(flat, sorted({*lower, *upper}))
    result = [
        float(ordered[lo]) + (position - lo) * (float(ordered[hi]) - float(ordered[lo]))
        for position, lo, hi in zip(positions, lower, upper, strict=True)
    ]
    out = torch.tensor(result, dtype=torch.float32, device=values.device)
    return out[0] if isinstance(q, (int, float)) else out
