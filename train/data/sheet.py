"""Pictures side by side on one sheet: samples of a dataset, or predictions next to what is true."""

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


def depth_colours(depth: Tensor, frame: Frame) -> Tensor:
    """(H,W) depth -> (H,W,3), near is red, on the scale of the frame's true depth; grey where that is unknown."""
    label = torch.zeros_like(frame.depth)
    try:
        span = percentile_range(frame.depth, frame.valid)
        label = encode(depth.float().clamp_min(1e-3), span, bf16=None, clip=True)
    except ValueError:  # one depth only, or none: drawn as one colour
        pass
    return torch.where(frame.valid[..., None], apply_color_map(0.5 + label / 2, "spectral"), _INVALID)


def normal_colours(normal: Tensor, frame: Frame) -> Tensor:
    """(H,W,3) OpenCV normals -> OpenGL colours; grey where the frame has none."""
    return torch.where(frame.normal_valid[..., None], encode_normal(normal, "OpenGL"), _INVALID)


def sheet_row(pictures: Sequence[Tensor], width: int = _WIDTH) -> Tensor:
    """Pictures (H,W,3) of one size -> one row of the sheet, each `width` pixels wide.

    Small ones are enlarged by repeating pixels: nothing is drawn that is not there."""
    parts = []
    for picture in pictures:
        size = (max(1, round(picture.shape[0] * width / picture.shape[1])), width)
        pixels = picture.permute(2, 0, 1)[None]
        if picture.shape[1] < width:
            small = F.interpolate(pixels, size=size, mode="nearest-exact")
        else:
            small = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        parts.append(F.pad(small[0], (_GAP, _GAP, _GAP, _GAP), value=1.0))
    return torch.cat(parts, dim=2).permute(1, 2, 0)


def write_sheet(rows: Sequence[Tensor], path: str | os.PathLike[str]) -> None:
    """Rows (h,w,3) in [0,1] of one width as a PNG. Replaces an earlier one, whole or not at all. Raises
    ValueError without rows, OSError where it cannot be written."""
    from PIL import Image

    if not rows:
        raise ValueError("there is no sample to draw; every picture tried was bad")
    sheet = torch.cat(list(rows)).clamp(0, 1)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.part")
    Image.fromarray((sheet * 255).round().to(torch.uint8).numpy()).save(temporary, "PNG")
    os.replace(temporary, target)


def draw_sheet(frames: Sequence[Frame], path: str | os.PathLike[str]) -> None:
    """A PNG with one row a frame: photograph, depth, normals. Raises what `write_sheet` raises."""
    rows = [
        sheet_row([frame.image, depth_colours(frame.depth, frame), normal_colours(frame.normal, frame)])
        for frame in frames
    ]
    write_sheet(rows, path)
