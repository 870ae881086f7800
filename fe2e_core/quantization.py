"""Depth <-> training label: logarithmic, inverse, uniform and square-root quantisation, and what BF16 costs each.

FE2E section 3.4, Eq. 7: y = ((D - D_2) / (D_98 - D_2) - 0.5) * 2 rounded to BF16, where D = ln(depth + 1e-6) and
D_i is the i-th percentile over the pixels that count. There is no clip in Eq. 7: labels leave [-1, 1] beyond the
percentiles. Larger labels are farther for "log", "uniform" and "sqrt" and nearer for "inverse".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .percentiles import percentile

SCHEMES = ("log", "inverse", "uniform", "sqrt")
EPSILON = 1e-6
"""Added to depth (metres) before the logarithm and the reciprocal, as in the paper; it also bounds an empty pixel."""

BF16_STEP = 1 / 256
"""Width of a BF16 step in [0.5, 1): the worst one in a label's range [-1, 1] (paper, appendix C)."""


def _check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"quantisation scheme is {scheme!r}; expected one of {', '.join(SCHEMES)}")


def transform(depth: Tensor, scheme: str) -> Tensor:
    """Depth >= 0 of any shape -> the scheme's value: ln(d + 1e-6), 1 / (d + 1e-6), d or sqrt(d). No normalisation."""
    _check_scheme(scheme)
    if scheme == "log":
        return torch.log(depth + EPSILON)
    if scheme == "inverse":
        return 1 / (depth + EPSILON)
    return depth if scheme == "uniform" else torch.sqrt(depth)


def inverse(value: Tensor, scheme: str) -> Tensor:
    """The depth whose `transform` is `value`. For "inverse", values at or below 0 are infinitely far."""
    _check_scheme(scheme)
    if scheme == "log":
        return torch.exp(value) - EPSILON
    if scheme == "inverse":
        return torch.where(value > 0, 1 / value - EPSILON, torch.inf)
    return value if scheme == "uniform" else value.clamp_min(0).square()


@dataclass(frozen=True)
class LabelRange:
    """Transformed depths that become -1 (`low`) and +1 (`high`). ValueError unless low < high, both finite."""

    scheme: str
    low: float
    high: float

    def __post_init__(self) -> None:
        _check_scheme(self.scheme)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"label range for '{self.scheme}' is {self.low} to {self.high}; expected two finite numbers, low < "
                "high. A depth map of one constant value has no range: give near and far instead"
            )


def metric_range(near: float, far: float, scheme: str = "log") -> LabelRange:
    """The range between two depths in metres. ValueError unless 0 <= near < far."""
    if not 0 <= near < far:
        raise ValueError(f"near is {near} m and far is {far} m; expected 0 <= near < far")
    ends = transform(torch.tensor([near, far], dtype=torch.float64), scheme).sort().values.tolist()
    return LabelRange(scheme, ends[0], ends[1])


def percentile_range(
    depth: Tensor, mask: Tensor | None = None, scheme: str = "log", low: float = 2, high: float = 98
) -> LabelRange:
    """Range between two percentiles (of 100) of one depth map's transformed values (Eq. 7).

    `depth` any shape; `mask` bool of the same shape, true where a pixel counts: pixels without depth must be masked
    *before* the percentiles, ln(0 + 1e-6) = -13.8 would otherwise become the near end. Percentiles are taken of the
    transformed values. Raises ValueError when no pixel counts, a counted pixel is not a positive finite depth, or
    all counted pixels have one depth.
    """
    if mask is not None and mask.shape != depth.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, depth {tuple(depth.shape)}; expected equal shapes")
    counted = depth.flatten() if mask is None else depth[mask]
    if counted.numel() == 0:
        raise ValueError("depth: no pixel counts (the mask is empty); expected at least one valid pixel")
    if not bool((torch.isfinite(counted) & (counted > 0)).all()):
        raise ValueError("depth: counted pixels hold zero, negative, NaN or infinite values; mask them out first")
    ends = percentile(transform(counted.float(), scheme), (low, high)).tolist()
    return LabelRange(scheme, ends[0], ends[1])


def bf16_round(x: Tensor, mode: str = "nearest") -> Tensor:
    """Round float32 values to BF16 and back: "nearest" (ties to even, what hardware does) or "truncate" (the paper's
    word: towards zero). Values stay float32. NaN and infinities are kept.
    """
    if mode == "nearest":
        return x.float().to(torch.bfloat16).float()
    if mode == "truncate":
        bits = x.float().contiguous().view(torch.int32)
        cut = (bits & -65536).view(torch.float32)
        return torch.where(torch.isnan(x), x.float(), cut)
    raise ValueError(f"BF16 rounding mode is {mode!r}; expected 'nearest' or 'truncate'")


def encode(depth: Tensor, range: LabelRange, bf16: str | None = "nearest", clip: bool = False) -> Tensor:
    """Depth >= 0 -> label (Eq. 7), same shape, float32; -1 at the range's low end and 1 at its high end.

    `bf16` is the rounding ("nearest", "truncate", or None for none). `clip` limits labels to [-1, 1]; Eq. 7 does not.
    """
    value = transform(depth.float(), range.scheme)
    label = ((value - range.low) / (range.high - range.low) - 0.5) * 2
    if clip:
        label = label.clamp(-1, 1)
    return label if bf16 is None else bf16_round(label, bf16)


def decode(label: Tensor, range: LabelRange) -> Tensor:
    """The depth a label stands for: the inverse of `encode` without its rounding. Same shape, float32."""
    value = (label.float() / 2 + 0.5) * (range.high - range.low) + range.low
    return inverse(value, range.scheme)


@dataclass(frozen=True)
class QuantizationError:
    """Error of one BF16 step at one depth: metres, and relative to the depth."""

    scheme: str
    depth: float
    error: float
    abs_rel: float


def error_table(near: float = 0.1, far: float = 80.0, step: float = BF16_STEP) -> list[QuantizationError]:
    """Table 1 of the paper recomputed: the error at `far` and at `near` (metres) of each scheme.

    As in appendix C: one whole BF16 step of the label in the worst interval, to first order in the depth; rounding
    to nearest halves it. "uniform" and "sqrt" span 0 to `far`, "inverse" and "log" span `near` to `far`. The paper
    rounds on the way (uniform at 0.1 m: 1.600 printed, 1.5625 exact). Raises ValueError unless 0 < near < far.
    """
    if not 0 < near < far:
        raise ValueError(f"near is {near} m and far is {far} m; expected 0 < near < far")
    spans = {
        "uniform": far,
        "inverse": 1 / near - 1 / far,
        "log": math.log(far / near),
        "sqrt": math.sqrt(far),
    }
    slopes = {  # d depth / d value
        "uniform": lambda d: 1.0,
        "inverse": lambda d: d * d,
        "log": lambda d: d,
        "sqrt": lambda d: 2 * math.sqrt(d),
    }
    rows = []
    for scheme in ("uniform", "inverse", "log", "sqrt"):
        for depth in (far, near):
            error = slopes[scheme](depth) * spans[scheme] * step / 2
            rows.append(QuantizationError(scheme, depth, error, error / depth))
    return rows
