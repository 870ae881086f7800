"""One estimate against one truth, by the benchmark's protocol."""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from fe2e_core.metrics import (
    Alignment,
    align_disparity,
    align_linear,
    align_log,
    align_sqrt,
    angular_error_deg,
    depth_summary,
)
from train.bench.angles import collect
from train.bench.estimate import Estimate, positive, resized_depth, resized_normal
from train.bench.protocol import Benchmark, Sample

ALIGNMENTS = {
    "log": "log alignment (FE2E)",
    "linear": "linear alignment (Marigold)",
    "disparity": "disparity alignment (Marigold, for methods that predict disparity)",
    "sqrt": "square-root alignment (for labels of that scheme)",
}
SCHEME_ALIGNMENTS = {"log": ("log", "linear"), "uniform": ("linear",), "inverse": ("disparity",), "sqrt": ("sqrt",)}
"""Alignments for each scheme of labels, its own first. Both usual ones stand side by side for the paper's scheme."""
DEPTH_ERRORS = ("abs_rel", "sq_rel", "rmse", "log_rmse", "delta1", "delta2", "delta3")


def fitted_columns(width: int, height: int, side: int) -> Tensor:
    """(width,) bool: the columns on which Marigold's evaluation fits when it limits the picture to `side` pixels.

    It means to shrink both sides, but its arrays reach the resampling as (1, rows, columns), which thins the columns
    only. Nearest neighbour, so this picks columns and changes no value.
    """
    kept = torch.zeros(width, dtype=torch.bool)
    scale = side / max(height, width)
    if side <= 0 or scale >= 1:
        return ~kept
    numbers = torch.arange(width, dtype=torch.float32)[None, None]
    kept[F.interpolate(numbers, scale_factor=scale, mode="nearest")[0, 0].long()] = True
    return kept


def aligned(benchmark: Benchmark, alignment: str, estimate: Estimate, depth: Tensor, sample: Sample) -> Alignment:
    """`depth` (h,w) of the truth's size, brought to metres by least squares over the pixels that count and clipped to
    the benchmark's range.

    "log": ln truth ~ s p + t over pixels with p > 0, clipped at 5 before the exponential. "linear": truth ~ s p + t.
    "disparity": 1 / truth ~ s p + t over pixels with p > 0. "sqrt": sqrt(truth) ~ s p + t. p is `positive`. Raises ValueError for an unknown
    alignment, or when no pixel can be used.
    """
    near, far = benchmark.near, benchmark.far
    values = positive(estimate, depth)
    if alignment == "log":
        return align_log(values * 2 - 1, sample.truth, sample.mask, near, far)
    if alignment == "sqrt":
        return align_sqrt(values, sample.truth, sample.mask, near, far)
    fit = fitted_columns(depth.shape[1], depth.shape[0], benchmark.fit_side).to(sample.mask.device) & sample.mask
    if alignment == "linear":
        return align_linear(values, sample.truth, fit, near, far)
    if alignment == "disparity":
        return align_disparity(values, sample.truth, fit, near, far)
    raise ValueError(f"alignment '{alignment}' is unknown; expected one of {', '.join(ALIGNMENTS)}")


def score_depth(benchmark: Benchmark, alignments: tuple[str, ...], estimate: Estimate, sample: Sample) -> dict:
    """{"pixels", and for each alignment the errors of DEPTH_ERRORS with its scale and shift}, computed in float64.
    Raises ValueError naming the image when there is no depth, it is not finite, or no pixel counts."""
    if estimate.depth is None:
        raise ValueError(f"{sample.name}: the prediction holds no depth")
    depth = resized_depth(estimate.depth, tuple(sample.truth.shape))
    if not bool(depth[sample.mask].isfinite().all()):
        raise ValueError(f"{sample.name}: the predicted depth is NaN or infinite where it counts")
    result: dict = {"pixels": int(sample.mask.sum())}
    try:
        for alignment in alignments:
            found = aligned(benchmark, alignment, estimate, depth, sample)
            errors = asdict(depth_summary(found.depth, sample.truth.double(), sample.mask))
            result[alignment] = {**errors, "scale": found.scale, "shift": found.shift}
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from error
    return result


def angle_map(estimate: Estimate, sample: Sample) -> Tensor:
    """(h,w) angular error in degrees, float64, at every pixel. Raises ValueError naming the image when there are no
    normals or they are not finite."""
    if estimate.normal is None:
        raise ValueError(f"{sample.name}: the prediction holds no normals")
    normal = resized_normal(estimate.normal, tuple(sample.truth.shape[:2]))
    if not bool(estimate.normal.isfinite().all()):
        raise ValueError(f"{sample.name}: the predicted normals are NaN or infinite")
    error = angular_error_deg(normal, sample.truth)
    # no direction at all: the cosine is 0, as in DSINE's evaluation, not a perfect hit
    return torch.where(normal.abs().sum(dim=-1) > 0, error, 90.0)


def score_normal(estimate: Estimate, sample: Sample) -> dict:
    """`Angles.packed` over the pixels that count. Raises what `angle_map` raises, and when no pixel counts."""
    if not bool(sample.mask.any()):
        raise ValueError(f"{sample.name}: no pixel of the truth counts")
    return collect(angle_map(estimate, sample)[sample.mask]).packed()
