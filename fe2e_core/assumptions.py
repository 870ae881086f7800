"""What exports assume where nothing is known: a field of view and a depth range.

A relative geometry is still a shape. Refusing it would help nobody, so meshes, clouds and files use these
assumptions and say so; a calibrated or anchored geometry never meets them. What was assumed stays marked as such
(`assumed` of FE2E_GEOMETRY), also in files, so that a later step does not take it for a measurement.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import torch

from .depth_decoding import DEFAULT_RATIO
from .geometry import depth_from_log, intrinsics_from_fov

logger = logging.getLogger(__name__)

DEFAULT_FOV = 60.0
"""Horizontal degrees of an ordinary photograph (phones about 65, a 35 mm lens 54)."""

ASSUMABLE = ("log_range", "intrinsics")
"""Keys of FE2E_GEOMETRY that may hold what nothing in the picture and nobody has told."""


def is_assumed(geometry: dict, key: str) -> bool:
    """Whether `key` (one of ASSUMABLE) is there, but only by assumption."""
    return geometry.get(key) is not None and key in geometry.get("assumed", ())


def mark(geometry: dict, *, assumed: Iterable[str] = (), found: Iterable[str] = ()) -> None:
    """Note in place which keys (of ASSUMABLE) have just been assumed, and which are known from now on."""
    names = (set(geometry.get("assumed", ())) | set(assumed)) - set(found)
    geometry.pop("assumed", None)
    if names:
        geometry["assumed"] = tuple(name for name in ASSUMABLE if name in names)


def with_depth_and_camera(
    geometry: dict, *, fov_x_degrees: float = DEFAULT_FOV, far_near_ratio: float = DEFAULT_RATIO
) -> dict:
    """A copy of an FE2E_GEOMETRY that has `depth` and `intrinsics` (and `log_range`, `log_near`, `metric`, `assumed`).

    What is there stays; missing depth comes from `log_range`, or from `far_near_ratio` (then in units of the
    near plane), a missing camera from the horizontal field of view. Raises ValueError for a ratio of at most
    1.
    """
    if not far_near_ratio > 1:
        raise ValueError(f"far_near_ratio: found {far_near_ratio}, expected a number above 1")
    result = dict(geometry)
    y = geometry["log_depth"]
    batch, height, width = y.shape
    if result.get("depth") is None:
        if result.get("log_range") is None:
            logger.info(
                "FE2E: the depth range is not known; far / near = %g is assumed. Calibrate or anchor for "
                "true shape.",
                far_near_ratio,
            )
            result["log_range"] = torch.full((batch,), math.log(far_near_ratio), device=y.device)
            result["log_near"] = torch.zeros(batch, device=y.device)
            result["metric"] = False
            mark(result, assumed=["log_range"])
        log_near = result.get("log_near")
        result["depth"] = depth_from_log(y, result["log_range"], 0.0 if log_near is None else log_near)
    if result.get("intrinsics") is None:
        logger.info(
            "FE2E: the camera is not known; a horizontal field of view of %g degrees is assumed.",
            fov_x_degrees,
        )
        k = intrinsics_from_fov(fov_x_degrees, height, width)
        result["intrinsics"] = k.to(y.device).expand(batch, 3, 3).clone()
        mark(result, assumed=["intrinsics"])
    result.setdefault("metric", False)
    return result
