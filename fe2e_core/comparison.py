"""Two or more pictures beside each other, or one wiped over the other."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def side_by_side(pictures: list[Tensor], *, gap: int = 0, vertical: bool = False) -> Tensor:
    """(B,H,W,3) pictures -> one (B,H,n W + gaps,3) picture (or stacked), white gaps of `gap` pixels.

    Other sizes are scaled to the first picture's height (width, if `vertical`) with their proportions kept; a
    picture with one image is repeated for the batch. Raises ValueError for none, or batches that do not
    match.
    """
    if not pictures or gap < 0:
        raise ValueError(
            f"pictures, gap: found {len(pictures)} pictures and gap {gap}, expected at least one and 0"
        )
    pictures = one_batch({f"picture {number}": picture for number, picture in enumerate(pictures, 1)})
    first = pictures[0]
    side = first.shape[2] if vertical else first.shape[1]
    axis = 1 if vertical else 2
    parts: list[Tensor] = []
    for picture in pictures:
        p = picture.to(first)
        height, width = p.shape[1:3]
        scale = side / (width if vertical else height)
        size = (max(1, round(height * scale)), side) if vertical else (side, max(1, round(width * scale)))
        p = _resized(p, size)
        if parts and gap:
            shape = list(p.shape)
            shape[axis] = gap
            parts.append(p.new_ones(shape))
        parts.append(p)
    return torch.cat(parts, dim=axis)


def wipe(a: Tensor, b: Tensor, *, position: float = 0.5, angle: float = 0.0, line: int = 2) -> Tensor:
    """`a` (B,H,W,3) on one side of a straight line, `b` on the other, at the size of `a`.

    `position` 0 shows only `b`, 1 only `a`; `angle` in degrees turns the line: 0 has `a` on the left, 90 on
    top. `line` is the white line's width in pixels. Raises ValueError for batches that do not match.
    """
    a, b = one_batch({"picture 1": a, "picture 2": b})
    height, width = a.shape[1:3]
    b = _resized(b.to(a), (height, width))
    direction = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = torch.arange(width, device=a.device, dtype=torch.float32) + 0.5
    y = torch.arange(height, device=a.device, dtype=torch.float32)[:, None] + 0.5
    along = x * direction[0] + y * direction[1]
    corners = [cx * direction[0] + cy * direction[1] for cx in (0, width) for cy in (0, height)]
    edge = min(corners) + position * (max(corners) - min(corners))
    out = torch.where((along < edge)[None, :, :, None], a, b)
    if line > 0 and 0 < position < 1:
        out = torch.where(((along - edge).abs() <= line / 2)[None, :, :, None], torch.ones_like(out), out)
    return out


def one_batch(pictures: Mapping[str, Tensor]) -> list[Tensor]:
    """(B,H,W,3) pictures, those of one image repeated for the batch. ValueError by its name for one of another batch."""
    count = max(map(len, pictures.values()))
    for name, picture in pictures.items():
        if len(picture) not in (1, count):
            raise ValueError(f"{name}: found a batch of {len(picture)}, expected 1 or {count} like the others")
    return [picture.expand(count, *picture.shape[1:]) for picture in pictures.values()]


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[1:3]) == size:
        return picture
    smaller = size[0] < picture.shape[1] or size[1] < picture.shape[2]
    x = picture.movedim(-1, 1)
    device = x.device
    if smaller and device.type == "mps":
        x = x.cpu()  # antialiased resampling is missing there in several torch versions
    x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=smaller)
    return x.to(device).movedim(1, -1)
