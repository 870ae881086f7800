"""Depth and normal errors, and the alignments without which relative depth cannot be compared.

Depth is (...,) along the optical axis, larger is farther; masks are bool of the same shape, true where a pixel
counts. Results are Python floats, computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_CLIP = 5.0
"""FE2E's evaluation clips the aligned log-depth here (148 m) before the exponential."""

FARTHEST_DISPARITY = 1e-3
"""Marigold's evaluation clips aligned disparity here (1000 m) before the reciprocal."""

NORMAL_THRESHOLDS = (5.0, 7.5, 11.25, 22.5, 30.0)


def _pair(prediction: Tensor, target: Tensor, mask: Tensor | None, positive: bool = True) -> tuple[Tensor, Tensor]:
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}; expected equal")
    if mask is None:
        mask = torch.ones(target.shape, dtype=torch.bool, device=target.device)
    if mask.shape != target.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}; expected bool {tuple(target.shape)}")
    if not bool(mask.any()):
        raise ValueError("mask: no pixel counts; expected at least one")
    a, b = prediction[mask].double(), target[mask].double()
    if positive and not bool((b > 0).all()):
        raise ValueError("target: counted pixels hold depth that is not positive; mask them out first")
    return a, b


def abs_rel(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Mean of |prediction - target| / target."""
    a, b = _pair(prediction, target, mask)
    return float(((a - b).abs() / b).mean())


def delta(prediction: Tensor, target: Tensor, mask: Tensor | None = None, power: int = 1, base: float = 1.25) -> float:
    """Share of pixels with max(prediction / target, target / prediction) < base ** power. Depth <= 0 never counts."""
    a, b = _pair(prediction, target, mask)
    ratio = torch.where(a > 0, torch.maximum(a / b, b / a.clamp_min(1e-300)), torch.inf)
    return float((ratio < base**power).double().mean())


def rmse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Root mean square difference, in the unit of depth."""
    a, b = _pair(prediction, target, mask)
    return float((a - b).square().mean().sqrt())


def log_rmse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Root mean square difference of natural logarithms. ValueError where the prediction is not positive."""
    a, b = _pair(prediction, target, mask)
    if not bool((a > 0).all()):
        raise ValueError("prediction: counted pixels hold depth that is not positive; clamp it first")
    return float((a.log() - b.log()).square().mean().sqrt())


@dataclass(frozen=True)
class DepthSummary:
    """All depth errors of one picture. sq_rel is the mean of squared difference / target (in the unit of depth);
    delta1 to delta3 are shares in [0, 1]; log_rmse is infinite where a counted prediction is not positive.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    log_rmse: float
    delta1: float
    delta2: float
    delta3: float


def depth_summary(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> DepthSummary:
    """The errors above in one go, which for large pictures saves most of the time. Raises what `abs_rel` raises."""
    a, b = _pair(prediction, target, mask)
    positive = bool((a > 0).all())
    difference = (a - b).abs()
    ratio = torch.maximum(a / b, b / a.clamp_min(1e-300))
    if not positive:
        ratio = torch.where(a > 0, ratio, torch.inf)
    within = [float((ratio < 1.25**power).double().mean()) for power in (1, 2, 3)]
    return DepthSummary(
        float((difference / b).mean()),
        float((difference.square() / b).mean()),
        float(difference.square().mean().sqrt()),
        float((a / b).log().square().mean().sqrt()) if positive else math.inf,
        *within,
    )


def rank_mean(values: Sequence[float], ranks: int) -> float:
    """The mean of the means of `ranks` processes, as the released evaluation averages over its GPUs.

    The values, in the order of the list of images, are cut into runs of len // ranks; the last one takes the rest. It
    differs from the sample mean when the runs differ in length. ValueError when a process would get no value.
    """
    share = len(values) // ranks if ranks > 0 else 0
    if share == 0:
        raise ValueError(f"{len(values)} values on {ranks} processes; expected at least one value for each")
    runs = [values[rank * share : (rank + 1) * share] for rank in range(ranks - 1)] + [values[(ranks - 1) * share :]]
    return math.fsum(math.fsum(run) / len(run) for run in runs) / ranks


@dataclass(frozen=True)
class Alignment:
    """Aligned depth in the target's unit, same shape as the prediction, and the line that did it."""

    depth: Tensor
    scale: float
    shift: float


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Least squares y = scale * x + shift; a constant x gives scale 0 and the mean."""
    mean_x, mean_y = x.mean(), y.mean()
    spread = (x - mean_x).square().sum()
    scale = float(((x - mean_x) * (y - mean_y)).sum() / spread) if float(spread) > 0 else 0.0
    return scale, float(mean_y - scale * mean_x)


def align_log(
    log_depth: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    near: float | None = None,
    far: float | None = None,
) -> Alignment:
    """FE2E's alignment: ln(target) ~ scale * p + shift with p = (log_depth + 1) / 2, least squares.

    `log_depth` is the network's label in [-1, 1], of any shape; `target` in metres. The fit uses the counted pixels
    with p > 0. The fitted logarithm is clipped at 5, exponentiated and clipped to [near, far] where given (metres).
    Raises ValueError when no counted pixel has p > 0.
    """
    p = (log_depth.double() + 1) / 2
    counted = p > 0 if mask is None else mask & (p > 0)
    if not bool(counted.any()):
        raise ValueError("log_depth: no counted pixel is above -1; expected a label map in [-1, 1] with variation")
    x, y = _pair(p, target, counted)
    scale, shift = _line(x, y.log())
    depth = (scale * p + shift).clamp(max=LOG_CLIP).exp()
    return Alignment(_clip(depth, near, far), scale, shift)


def align_linear(
    depth: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    near: float | None = None,
    far: float | None = None,
) -> Alignment:
    """Marigold's alignment: target ~ scale * depth + shift, least squares over the counted pixels, then clipped."""
    x, y = _pair(depth, target, mask)
    scale, shift = _line(x, y)
    return Alignment(_clip(scale * depth.double() + shift, near, far), scale, shift)


def align_disparity(
    disparity: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    near: float | None = None,
    far: float | None = None,
) -> Alignment:
    """Marigold's alignment for methods that predict disparity: 1 / target ~ scale * disparity + shift, least squares
    over the counted pixels with a positive prediction; clipped at 0.001 1/m, inverted, clipped to [near, far].
    Raises ValueError when no counted pixel has a positive prediction.
    """
    counted = disparity > 0 if mask is None else mask & (disparity > 0)
    if not bool(counted.any()):
        raise ValueError("disparity: no counted pixel is positive; expected a map that is larger where it is nearer")
    x, y = _pair(disparity, target, counted)
    scale, shift = _line(x, 1 / y)
    depth = 1 / (scale * disparity.double() + shift).clamp_min(FARTHEST_DISPARITY)
    return Alignment(_clip(depth, near, far), scale, shift)


def align_sqrt(
    root: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    near: float | None = None,
    far: float | None = None,
) -> Alignment:
    """For labels of the square root: sqrt(target) ~ scale * root + shift, least squares over the counted pixels; clipped
    at 0, squared, clipped to [near, far].
    """
    x, y = _pair(root, target, mask)
    scale, shift = _line(x, y.sqrt())
    depth = (scale * root.double() + shift).clamp_min(0).square()
    return Alignment(_clip(depth, near, far), scale, shift)


def _clip(depth: Tensor, near: float | None, far: float | None) -> Tensor:
    return depth if near is None and far is None else depth.clamp(min=near, max=far)


def angular_error_deg(prediction: Tensor, target: Tensor) -> Tensor:
    """Angle between vectors (..., 3), any length above zero, any common axes -> (...,) degrees, float64."""
    if prediction.shape != target.shape or prediction.shape[-1] != 3:
        raise ValueError(
            f"normals have shapes {tuple(prediction.shape)} and {tuple(target.shape)}; expected equal, ending in 3"
        )
    a, b = prediction.double(), target.double()
    # atan2 of cross and dot keeps its precision at small angles, where acos of a rounded cosine has none.
    cross = torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=-1)
    return torch.rad2deg(torch.atan2(cross, (a * b).sum(-1)))


@dataclass(frozen=True)
class NormalSummary:
    """Angular errors in degrees over all pixels; `within` maps a threshold in degrees to a share in [0, 1]."""

    mean: float
    median: float
    rmse: float
    within: dict[float, float]
