"""Metres for a depth that has only shape: near and far, picked points, one length, sparse points, another
depth.

All of them fix the line ln metres = gain * x + offset, with x the logarithm of the depth known so far. With a
calibrated range only the offset is unknown (gain 1); otherwise x is the label's (log_depth + 1) / 2 and the
gain is the log range. Fits are robust: a seeded search over pairs by the least median, then reweighted
least squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import pixel_rays

_CANDIDATES = 800
_MOST_POINTS = 20_000
_FLOOR = 1e-4  # residuals below this part of the depth count as exact


@dataclass(frozen=True)
class AnchorFit:
    """ln metres = gain * x + offset. residual: median of |ln error| over the points in use (0.01 is about 1
    %); used: their number, given: of how many; residuals: (N,) signed ln error of every point, in the order
    given.
    """

    gain: float
    offset: float
    residual: float
    used: int
    given: int
    residuals: Tensor


def fit_anchor(
    x: Tensor, metres: Tensor, gain: float | None = None, weights: Tensor | None = None
) -> AnchorFit:
    """Robust line through points: x (N,) of ln depth or label, metres (N,) positive; a given gain is kept.

    Raises ValueError when there are too few points (one with a given gain, two of different x without), or
    when they ask for a depth that falls as the network's rises.
    """
    x, metres = x.reshape(-1).double().cpu(), metres.reshape(-1).double().cpu()
    if x.shape != metres.shape:
        raise ValueError(
            f"points: found {len(x)} depths and {len(metres)} distances; expected as many of each."
        )
    good = torch.isfinite(x) & torch.isfinite(metres) & (metres > 0)
    if weights is not None:
        good = good & (weights.reshape(-1).cpu() > 0)
    needed = 1 if gain is not None else 2
    if int(good.sum()) < needed:
        raise ValueError(
            f"points: found {int(good.sum())} usable anchor points, expected at least {needed}: "
            "distances must be positive and lie on pixels that count."
        )
    target = torch.log(metres.clamp_min(1e-30))
    w = torch.ones_like(x) if weights is None else weights.reshape(-1).double().cpu()
    index = torch.nonzero(good)[:, 0]
    index = index[:: max(1, math.ceil(len(index) / _MOST_POINTS))]
    px, pt, pw = x[index], target[index], w[index]
    if gain is None and float(px.max() - px.min()) < 1e-3:
        raise ValueError(
            "points: all anchor points lie at the same depth, so they cannot fix the range; "
            "pick points at different depths, or calibrate first."
        )
    slope, offset = _search(px, pt, gain)
    for _ in range(20):
        miss = pt - slope * px - offset
        scale = max(1.4826 * float(miss.abs().median()), _FLOOR)
        tukey = pw * (1 - (miss / (4.685 * scale)).square()).clamp_min(0).square()
        if float(tukey.sum()) <= 0:
            break
        if gain is None:
            mx, mt = (tukey * px).sum() / tukey.sum(), (tukey * pt).sum() / tukey.sum()
            spread = (tukey * (px - mx).square()).sum()
            if float(spread) < 1e-12:
                break
            slope = float((tukey * (px - mx) * (pt - mt)).sum() / spread)
            offset = float(mt) - slope * float(mx)
        else:
            offset = float((tukey * (pt - slope * px)).sum() / tukey.sum())
    if slope <= 0:
        raise ValueError(
            "points: the anchors ask for depths that fall where the network's rise; "
            "check the distances and which end of a reference picture is near."
        )
    miss = pt - slope * px - offset
    inside = miss.abs() <= 4.685 * max(1.4826 * float(miss.abs().median()), _FLOOR)
    residuals = torch.where(good, target - slope * x - offset, torch.full_like(x, math.nan))
    return AnchorFit(slope, offset, float(miss[inside].abs().median()), int(inside.sum()), len(x), residuals)


def _search(x: Tensor, target: Tensor, gain: float | None) -> tuple[float, float]:
    """Line with the least median miss among lines through pairs (points, if the gain is given)."""
    if gain is not None:
        return gain, float((target - gain * x).median())
    generator = torch.Generator().manual_seed(0)
    n = len(x)
    if n * (n - 1) // 2 <= _CANDIDATES:
        one, two = torch.triu_indices(n, n, 1)
    else:
        one = torch.randint(0, n, (_CANDIDATES,), generator=generator)
        two = torch.randint(0, n, (_CANDIDATES,), generator=generator)
    apart = (x[one] - x[two]).abs() > 0.05 * (x.max() - x.min())
    one, two = one[apart], two[apart]
    if not len(one):
        one, two = x.argmin()[None], x.argmax()[None]
    slopes = (target[one] - target[two]) / (x[one] - x[two])
    offsets = target[one] - slopes * x[one]
    sample = slice(None, None, max(1, n // 2000))
    misses = (target[sample] - slopes[:, None] * x[sample] - offsets[:, None]).abs().median(dim=1).values
    best = int(misses.argmin())
    return float(slopes[best]), float(offsets[best])


def sample_at(picture: Tensor, points: Tensor, mask: Tensor | None = None, radius: int = 2) -> Tensor:
    """Median of picture (H, W) in a window about each point (N, 2), x and y in fractions of the picture;
    (N,).

    Points outside the picture, or with no pixel of the mask around them, give nan.
    """
    height, width = picture.shape
    out = []
    for x, y in points.tolist():
        col, row = math.floor(x * width), math.floor(y * height)
        if not (0 <= x <= 1 and 0 <= y <= 1):
            out.append(math.nan)
            continue
        col, row = min(col, width - 1), min(row, height - 1)
        window = (
            slice(max(0, row - radius), row + radius + 1),
            slice(max(0, col - radius), col + radius + 1),
        )
        values = picture[window] if mask is None else picture[window][mask[window]]
        # the median of an even number of values must not fall between two surfaces
        out.append(float(values.median()) if values.numel() else math.nan)
    return torch.tensor(out, dtype=torch.float64)


def scale_from_length(
    depth: Tensor, intrinsics: Tensor, ends: Tensor, metres: float, mask: Tensor | None = None
) -> float:
    """Metres per unit of depth (H, W) so that two picked points (2, 2), in fractions of the picture, lie
    `metres` apart. Raises ValueError for points outside the mask or at the same place.
    """
    if not metres > 0:
        raise ValueError(f"metres: found {metres}, expected a positive length.")
    z = sample_at(depth, ends, mask)
    if not bool(torch.isfinite(z).all()):
        raise ValueError(
            "points: an end of the measured length lies outside the picture or the mask; pick another."
        )
    k = intrinsics.double().cpu()
    x = (ends[:, 0].double() - k[0, 2]) / k[0, 0] * z
    y = (ends[:, 1].double() - k[1, 2]) / k[1, 1] * z
    length = float(torch.stack([x[0] - x[1], y[0] - y[1], z[0] - z[1]]).norm())
    if length <= 1e-9:
        raise ValueError("points: both ends of the measured length are the same point; pick two.")
    return metres / length


def scale_from_distance(
    depth: Tensor, intrinsics: Tensor, point: Tensor, metres: float, mask: Tensor | None = None
) -> float:
    """Metres per unit of depth (H, W) so that one point (2,), in fractions, lies `metres` from the camera's
    lens.
    """
    if not metres > 0:
        raise ValueError(f"metres: found {metres}, expected a positive distance.")
    z = sample_at(depth, point[None], mask)
    if not bool(torch.isfinite(z).all()):
        raise ValueError("point: it lies outside the picture or the mask; pick another.")
    ray = pixel_rays(1, 1, intrinsics.double().cpu())[0, 0]
    k = intrinsics.double().cpu()
    ray = torch.stack(
        [(point[0].double() - k[0, 2]) / k[0, 0], (point[1].double() - k[1, 2]) / k[1, 1], ray[2]]
    )
    return metres / float(z[0] * ray.norm())
