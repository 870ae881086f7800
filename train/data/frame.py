"""One training picture with its geometry, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ANCHORS = ("centre", "bottom")


class BadFrame(ValueError):
    """A picture of a dataset that cannot be used: its message names the file, what was found and what is
    expected.
    """


class RejectedFrame(BadFrame):
    """A readable picture that the dataset's rules leave out (too many invalid pixels)."""


@dataclass(frozen=True)
class Frame:
    """A picture and its geometry; H rows and W columns.

    `image` (H,W,3) float32 sRGB in [0,1]; `depth` (H,W) float32, planar z in metres, 0 where not `valid`;
    `normal` (H,W,3) unit, OpenCV camera axes, facing the camera, (0,0,-1) where not `normal_valid`; both
    masks (H,W) bool; `intrinsics` (3,3) float32, normalised by width and height as in `fe2e_core.geometry`;
    `name` says which picture of which dataset it is."""

    image: Tensor
    depth: Tensor
    normal: Tensor
    valid: Tensor
    normal_valid: Tensor
    intrinsics: Tensor
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.depth.shape[0], self.depth.shape[1]


class Source(Protocol):
    """A dataset. `name` is unique in a mixture; `size` (H, W) is that of every frame; `length` is the number
    of pictures, None when endless. `read` returns the same frame for the same index each time, or raises
    BadFrame. `files` names what a frame is read from (nothing where it is made); `fingerprint` says, as text,
    what else it depends on: settings, and files that belong to the whole dataset."""

    name: str
    size: tuple[int, int]
    length: int | None

    def read(self, index: int) -> Frame: ...

    def files(self, index: int) -> Sequence[str]: ...

    def fingerprint(self) -> str: ...


def make_frame(
    image: Tensor,
    depth: Tensor,
    normal: Tensor,
    valid: Tensor,
    normal_valid: Tensor,
    intrinsics: Tensor,
    name: str,
) -> Frame:
    """A frame whose masked values keep the promises of `Frame`. Raises BadFrame when sizes disagree."""
    sizes = {tuple(t.shape[:2]) for t in (image, depth, normal, valid, normal_valid)}
    if len(sizes) > 1:
        raise BadFrame(
            f"{name}: picture, depth and normals have the sizes {sorted(sizes)}; expected one size"
        )
    valid = valid & torch.isfinite(depth) & (depth > 0)
    length = torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    normal_valid = normal_valid & torch.isfinite(length[..., 0]) & (length[..., 0] > 1e-6)
    facing = torch.tensor([0.0, 0.0, -1.0])
    return Frame(
        image=image.float().clamp(0, 1).contiguous(),
        depth=torch.where(valid, depth, 0).float(),
        normal=torch.where(normal_valid[..., None], normal / length.clamp_min(1e-12), facing).float(),
        valid=valid,
        normal_valid=normal_valid,
        intrinsics=intrinsics.float(),
        name=name,
    )


def crop_frame(frame: Frame, height: int, width: int, anchor: str = "centre") -> Frame:
    """The middle columns, and the middle or the lowest rows, of a frame. Raises BadFrame when it is smaller."""
    rows, columns = frame.size
    if rows < height or columns < width:
        raise BadFrame(
            f"{frame.name}: {rows}x{columns} pixels; expected at least {height}x{width} to crop from"
        )
    if anchor not in ANCHORS:
        raise ValueError(f"crop anchor is {anchor!r}; expected one of {', '.join(ANCHORS)}")
    top = rows - height if anchor == "bottom" else (rows - height) // 2
    left = (columns - width) // 2
    k = frame.intrinsics.clone()
    k[0] *= columns / width
    k[1] *= rows / height
    k[0, 2] -= left / width
    k[1, 2] -= top / height

    def cut(tensor: Tensor) -> Tensor:
        return tensor[top : top + height, left : left + width].contiguous()

    return replace(
        frame,
        image=cut(frame.image),
        depth=cut(frame.depth),
        normal=cut(frame.normal),
        valid=cut(frame.valid),
        normal_valid=cut(frame.normal_valid),
        intrinsics=k,
    )


def fit_frame(frame: Frame, height: int, width: int, anchor: str = "centre") -> Frame:
    """A frame of height x width: scaled, aspect kept, until it covers that size, then cropped.

    Pictures are averaged; depth, normals and masks take the nearest pixel, because between two surfaces there
    is none."""
    rows, columns = frame.size
    if (rows, columns) == (height, width):
        return frame
    scale = max(height / rows, width / columns)
    size = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    if size == (rows, columns):
        return crop_frame(frame, height, width, anchor)
    image = F.interpolate(frame.image.permute(2, 0, 1)[None], size=size, mode="bilinear", antialias=True)[
        0
    ].permute(1, 2, 0)
    i = ((torch.arange(size[0]) + 0.5) * rows / size[0]).long().clamp_max(rows - 1)
    j = ((torch.arange(size[1]) + 0.5) * columns / size[1]).long().clamp_max(columns - 1)

    def pick(tensor: Tensor) -> Tensor:
        return tensor[i][:, j]

    scaled = replace(
        frame,
        image=image.clamp(0, 1).contiguous(),
        depth=pick(frame.depth),
        normal=pick(frame.normal),
        valid=pick(frame.valid),
        normal_valid=pick(frame.normal_valid),
    )
    return crop_frame(scaled, height, width, anchor)


@dataclass(frozen=True)
class Batch:
    """B frames of one size, ready for the network's side of things.

    `image` (B,3,H,W) in [0,1]; `depth` (B,H,W) metres; `normal` (B,3,H,W) unit, OpenCV axes; `valid`,
    `normal_valid` (B,H,W) bool; `intrinsics` (B,3,3); `names` of the frames; `source` the dataset; `number`
    of the batch in the run."""

    image: Tensor
    depth: Tensor
    normal: Tensor
    valid: Tensor
    normal_valid: Tensor
    intrinsics: Tensor
    names: tuple[str, ...]
    source: str
    number: int


def collate(frames: Sequence[Frame], source: str, number: int) -> Batch:
    """Frames of one size -> Batch."""
    return Batch(
        image=torch.stack([f.image.permute(2, 0, 1) for f in frames]),
        depth=torch.stack([f.depth for f in frames]),
        normal=torch.stack([f.normal.permute(2, 0, 1) for f in frames]),
        valid=torch.stack([f.valid for f in frames]),
        normal_valid=torch.stack([f.normal_valid for f in frames]),
        intrinsics=torch.stack([f.intrinsics for f in frames]),
        names=tuple(f.name for f in frames),
        source=source,
        number=number,
    )
