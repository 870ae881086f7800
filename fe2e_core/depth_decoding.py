"""From the network's log-depth to numbers and grey pictures that mean something.

The network's `log_depth` y is Eq. 7's label: the logarithm of depth, -1 at the near plane (its 2 %
percentile) and +1 at the far plane (98 %). How far the far plane is, in near planes, the network does not
say; it is given here (a ratio, or metres) or known from an earlier step (calibration, anchoring).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import depth_from_log, log_from_depth
from .percentiles import percentile
from .quantization import EPSILON

MAPPINGS = ("disparity", "log", "relative", "metric")
DEFAULT_RATIO = 10.0
"""Far over near plane where nothing is known: between a room (about 5) and a street (about 40)."""

KNOWN, GIVEN = "what the geometry knows", "the values given here"
RANGE_SOURCES = (KNOWN, GIVEN)
PER_IMAGE, PER_BATCH = "each image", "the whole batch"
NORMALIZE_OVER = (PER_IMAGE, PER_BATCH)


@dataclass(frozen=True)
class DepthStyle:
    """How log-depth becomes values and a picture.

    mapping      "disparity" 1 / depth (1 at the near plane where no unit is known), "log" (-1 near to +1
                 far), "relative" depth in units of the near plane, "metric" depth in metres
    near_white   true: near is white, far is black
    ratio        far plane / near plane, for "relative" and "disparity"
    near, far    metres of the near and the far plane (the 2 % and 98 % percentiles), for "metric"
    low, high    percentages of the counted pixels beyond which the picture is clipped
    range_from   KNOWN: a depth or range the geometry brings wins over ratio, near and far; GIVEN: it is
                 ignored
    normalize    PER_IMAGE or PER_BATCH (a clip whose frames share one range then does not flicker)
    """

    mapping: str = "disparity"
    near_white: bool = True
    ratio: float = DEFAULT_RATIO
    near: float = 1.0
    far: float = 10.0
    low: float = 0.1
    high: float = 99.9
    range_from: str = KNOWN
    normalize: str = PER_IMAGE

    def __post_init__(self) -> None:
        if self.mapping not in MAPPINGS:
            raise ValueError(f"mapping: found {self.mapping!r}, expected one of {', '.join(MAPPINGS)}")
        if self.range_from not in RANGE_SOURCES:
            raise ValueError(f"range: found {self.range_from!r}, expected one of {', '.join(RANGE_SOURCES)}")
        if self.normalize not in NORMALIZE_OVER:
            raise ValueError(
                f"normalize: found {self.normalize!r}, expected one of {', '.join(NORMALIZE_OVER)}"
            )
        if not (math.isfinite(self.ratio) and self.ratio > 1.0):
            raise ValueError(
                f"far_near_ratio: found {self.ratio}, expected a number above 1; "
                "the far plane lies behind the near one"
            )
        if not (math.isfinite(self.far) and EPSILON <= self.near < self.far):
            raise ValueError(
                f"near, far: found near {self.near} and far {self.far} metres, expected 0 < near < far, near at least "
                f"{EPSILON:g}; "
                "set far to the distance of the farthest things and near to that of the nearest"
            )
        if not 0.0 <= self.low < self.high <= 100.0:
            raise ValueError(
                f"clip_low, clip_high: found {self.low} and {self.high}, "
                "expected percentages with 0 <= clip_low < clip_high <= 100"
            )


PRESETS: dict[str, DepthStyle] = {
    "depth ControlNet (near white, disparity)": DepthStyle("disparity", near_white=True),
    "relighting (far white, log)": DepthStyle("log", near_white=False, low=0.0, high=100.0),
    "fog, depth of field (far white, linear)": DepthStyle("relative", near_white=False),
    "metric (far white, metres)": DepthStyle("metric", near_white=False, low=0.0, high=100.0),
}


@dataclass(frozen=True)
class DecodedDepth:
    """`values` (B,H,W) in the style's mapping, unclipped; `picture` (B,H,W) in [0,1].

    `depth` (B,H,W) positive, in metres if `metric`, else in one unknown unit; `log_range`, `log_near` (B,) so
    that ln depth = log_range * (log_depth + 1) / 2 + log_near where the depth follows from the network alone.
    All three are None for the "log" mapping of a geometry without a range, which needs no distance at all.
    `assumed`: the range is the style's ratio, which stood in because nothing better was known.
    """

    values: Tensor
    picture: Tensor
    depth: Tensor | None
    log_range: Tensor | None
    log_near: Tensor | None
    metric: bool
    assumed: bool = False


def decode_depth(
    log_depth: Tensor,
    mask: Tensor,
    style: DepthStyle,
    *,
    depth: Tensor | None = None,
    log_range: Tensor | None = None,
    log_near: Tensor | None = None,
    metric: bool = False,
) -> DecodedDepth:
    """Decode (B,H,W) log-depth, larger is farther, with the (B,H,W) bool mask of pixels that count.

    `depth`, `log_range`, `log_near`, `metric` are what is known of the geometry already (keys of
    FE2E_GEOMETRY); they are used if `style.range_from` is KNOWN, and for the mapping "metric" only if they
    are in metres. Values are given at every pixel; the picture is normalised inside the mask and shows the
    rest as far.
    """
    if log_depth.ndim != 3 or mask.shape != log_depth.shape:
        raise ValueError(
            f"log_depth, mask: found shapes {tuple(log_depth.shape)} and {tuple(mask.shape)}, "
            "expected the same (B,H,W)"
        )
    y = log_depth.to(torch.float32)
    mask = mask.to(device=y.device, dtype=torch.bool)
    known = style.range_from == KNOWN and (metric or style.mapping != "metric")
    assumed = False
    batch = y.shape[0]

    if known and log_range is not None:
        span = log_range.to(y).reshape(-1).expand(batch)
        start = torch.zeros_like(span) if log_near is None else log_near.to(y).reshape(-1).expand(batch)
    elif (known and depth is not None) or style.mapping == "log":
        span = start = None
    elif style.mapping == "metric":
        span = y.new_full((batch,), math.log(style.far / style.near))
        start = y.new_full((batch,), math.log(style.near))
    else:
        span, start = y.new_full((batch,), math.log(style.ratio)), y.new_zeros(batch)
        assumed = known

    if known and depth is not None:
        z = depth.to(y).clamp_min(torch.finfo(torch.float32).tiny)
    else:
        z = None if span is None else depth_from_log(y, span, start)
    in_metres = metric if known else style.mapping == "metric"

    if style.mapping == "log":
        # a refined depth is told apart from the network's label only through the range that connects them
        values = y if span is None or depth is None or not known else log_from_depth(z, span, start)
    elif style.mapping == "disparity":
        values = 1.0 / z
    else:
        values = z
    picture = normalize_picture(
        values,
        mask,
        low=style.low,
        high=style.high,
        white_is_large=(style.mapping == "disparity") == style.near_white,
        outside=0.0 if style.near_white else 1.0,
        over=style.normalize,
    )
    return DecodedDepth(values, picture, z, span, start, in_metres and z is not None, assumed)


def normalize_picture(
    values: Tensor,
    mask: Tensor,
    *,
    low: float = 0.0,
    high: float = 100.0,
    white_is_large: bool = True,
    outside: float = 0.0,
    over: str = PER_IMAGE,
) -> Tensor:
    """(B,H,W) values -> (B,H,W) in [0,1]: the `low` and `high` percentiles inside the mask become 0 and 1.

    Pixels outside the mask, or not finite, become `outside`; a constant becomes mid-grey.
    """
    counted = mask & torch.isfinite(values)
    out = torch.full_like(values, outside, dtype=torch.float32)
    groups = (
        [slice(0, values.shape[0])]
        if over == PER_BATCH
        else [slice(i, i + 1) for i in range(values.shape[0])]
    )
    for group in groups:
        inside = counted[group]
        if not bool(inside.any()):
            continue
        bottom, top = percentile(values[group], (low, high), inside).tolist()
        # float32 noise on a flat wall must not be blown up to full contrast
        if top - bottom <= 1e-6 * max(abs(top), abs(bottom), 1e-30):
            grey = torch.full_like(out[group], 0.5)
        else:
            grey = ((values[group].to(torch.float32) - bottom) / (top - bottom)).clamp(0.0, 1.0)
            grey = grey if white_is_large else 1.0 - grey
        out[group] = torch.where(inside, grey, out[group])
    return out
