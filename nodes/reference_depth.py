"""Depth that another program or node measured, as Anchor Depth takes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_depth(references: tuple, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Another depth in metres and where it is known, (B, H, W) each, at the geometry's size.

    references: an IMAGE of raw metres, a MOGE_GEOMETRY and a DA3_GEOMETRY, one of them not None. Raises ValueError for
    none or several, for one without depth or unit, and for another number of pictures.
    """
    image, moge, da3 = references
    given = [
        name
        for name, value in zip(("reference", "moge_geometry", "da3_geometry"), references, strict=True)
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(
            f"anchor: 'another depth' needs exactly one of reference, moge_geometry, da3_geometry; connected: {given or 'none'}."
        )
    known = None
    for name, value in (("moge_geometry", moge), ("da3_geometry", da3)):
        if value is not None and value.get("metric") is False:
            raise ValueError(f"{name}: its depth has a shape but no unit; anchor the geometry it was made of first.")
    if image is not None:
        depth = image[..., 0]
    elif moge is not None:
        if moge.get("depth") is None:
            raise ValueError("moge_geometry: it holds no depth.")
        depth, known = moge["depth"], moge.get("mask")
    else:
        if da3.get("depth") is None:
            raise ValueError("da3_geometry: it holds no depth.")
        depth = da3["depth"]
        known = None if da3.get("sky") is None else da3["sky"] < 0.5
    depth = depth.float().cpu()
    valid = torch.isfinite(depth) & (depth > 0)
    if known is not None:
        valid = valid & known.to(depth.device).reshape(depth.shape)
    if len(depth) not in (1, shape[0]):
        raise ValueError(f"reference: found {len(depth)} pictures, expected 1 or {shape[0]}.")
    if depth.shape[1:] != shape[1:]:
        depth = F.interpolate(torch.where(valid, depth, 0.0)[:, None], size=shape[1:], mode="nearest-exact")[
            :, 0
        ]
        valid = F.interpolate(valid[:, None].float(), size=shape[1:], mode="nearest-exact")[:, 0] > 0.5
    return depth.expand(shape), valid.expand(shape)
