"""Samples of a dataset on one picture: photograph, depth label and normals side by side, one row a sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fe2e_core.colors import apply_color_map
from fe2e_core.geometry import encode_normal
from fe2e_core.quantization import encode, percentile_range
from train.data.frame import Frame

_GAP = 6
_INVALID = 0.35
_WIDTH = 320


def _row(frame: Frame) -> Tensor:
    """(h, 3 w + gaps, 3): what counts in colour, what does not in grey."""
    label = torch.zeros_like(frame.depth)
    try:
        label = encode(
            frame.depth.clamp_min(1e-3), percentile_range(frame.depth, frame.valid), bf16=None, clip=True
        )
    except ValueError:  # one depth only, or none: drawn as one colour
        pass
    depth = torch.where(frame.valid[..., None], apply_color_map(0.5 + label / 2, "spectral"), _INVALID)
    normal = torch.where(frame.normal_valid[..., None], encode_normal(frame.normal, "OpenGL"), _INVALID)
    height = max(1, round(frame.size[0] * _WIDTH / frame.size[1]))
    parts = []
    for picture in (frame.image, depth, normal):
        small = F.interpolate(
            picture.permute(2, 0, 1)[None], size=(height, _WIDTH), mode="bilinear", antialias=True
        )
        parts.append(F.pad(small[0], (_GAP, _GAP, _GAP, _GAP), value=1.0))
    return torch.cat(parts, dim=2).permute(1, 2, 0)


def draw_sheet(frames: Sequence[Frame], path: str | os.PathLike[str]) -> None:
    """Write a PNG with one row a frame. Replaces an earlier sheet, whole or not at all. ValueError without
    frames.
    """
    from PIL import Image

    if not frames:
        raise ValueError("there is no sample to draw; every picture tried was bad")
    sheet = torch.cat([_row(frame) for frame in frames]).clamp(0, 1)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.part")
    Image.fromarray((sheet * 255).round().to(torch.uint8).numpy()).save(temporary, "PNG")
    os.replace(temporary, target)
