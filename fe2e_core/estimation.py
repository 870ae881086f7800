"""From pictures of any size to geometry at exactly that size, whatever it is that runs the network.

Small pictures are one model input. Pictures far larger than the trained size can be worked on in tiles: one
pass over the whole says where everything is, and levels of tiles, each twice as large as the one before, add the
detail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import sizing, tiling
from .geometry import normal_from_network
from .soft_edges import STEPS, sharpen_soft_edges
from .tile_levels import add_level, add_normal_level

logger = logging.getLogger(__name__)

TILED = "tiled"
MODES = (*sizing.MODES, TILED)

Predict = Callable[[int, Callable[[int, int], Tensor]], Iterator[tuple[Tensor, Tensor]]]
"""`predict(count, pictures)`, where `pictures(start, stop)` gives model inputs (b,h,w,3) in [0,1] of that range, all
of one size with sides that are multiples of 16: log-depth (b,h,w) in [-1,1] and normals (b,h,w,3) in network axes,
chunk by chunk, float32, CPU."""


LEAST_GAIN = 1.25
"""A tiled size less than this many times larger than the whole pass is not worth its tiles."""

LEAST_LEVEL = 1.5
"""The same for a level between the whole pass and the tiled size."""


@dataclass(frozen=True)
class Level:
    """frame: how the whole picture becomes the level's size. plan: the tiles that it is cut into."""

    frame: sizing.Frame
    plan: tiling.TilePlan


@dataclass(frozen=True)
class TiledSize:
    """whole: how the whole picture becomes one model input. levels: coarse to fine, at least one."""

    whole: sizing.Frame
    levels: tuple[Level, ...]

    @property
    def frame(self) -> sizing.Frame:
        """How the picture becomes the tiled size, the finest level's."""
        return self.levels[-1].frame


def tiled_size(height: int, width: int, pixels: int, detail: float, overlap: float) -> TiledSize | None:
    """How to tile a picture, None when the picture is too small to gain from it.

    pixels: the budget the network was trained at. detail: how many times larger than the whole pass the tiled
    picture is, at most; it is never enlarged. overlap: share of a tile. Below the tiled size there is a level of
    half its size, and so on, down to the last that is LEAST_LEVEL times larger than the whole pass.
    """
    whole = sizing.fit(height, width, "trained", pixels=pixels)
    least = max(whole.resized_height, whole.resized_width)
    longest = min(max(height, width), round(detail * least))
    if longest < LEAST_GAIN * least:
        return None
    sides = [longest]
    while sides[0] / 2 >= LEAST_LEVEL * least:
        sides.insert(0, round(sides[0] / 2))
    levels = []
    for side in sides:
        frame = sizing.fit(height, width, "longest_side", longest_side=side)
        plan = tiling.plan_tiles(frame.padded_height, frame.padded_width, whole.padded_height, whole.padded_width,
                                 overlap)
        levels.append(Level(frame, plan))
    return TiledSize(whole, tuple(levels))


def choose_size(height: int, width: int, mode: str, *, pixels: int, longest_side: int = 1024, detail: float = 4.0,
                overlap: float = 0.25) -> sizing.Frame | TiledSize:
    """The size to work at, of a picture of height x width; `mode` is one of MODES.

    Modes but the last are those of `sizing.fit`; "tiled" is "trained" for a picture that is too small to gain
    from tiles. Raises ValueError for an unknown mode.
    """
    if mode != TILED:
        return sizing.fit(height, width, mode, pixels=pixels, longest_side=longest_side)
    size = tiled_size(height, width, pixels, detail, overlap)
    if size is not None:
        return size
    logger.info("FE2E: %dx%d is hardly larger than the trained size; no tiles are needed", width, height)
    return sizing.fit(height, width, "trained", pixels=pixels)


def passes(size: sizing.Frame | TiledSize) -> int:
    """How many model inputs one picture of this size is."""
    return 1 + sum(len(level.plan) for level in size.levels) if isinstance(size, TiledSize) else 1


def estimate(predict: Predict, image: Tensor, size: sizing.Frame | TiledSize) -> tuple[Tensor, Tensor]:
    """(B,H,W,3) in [0,1] -> log-depth (B,H,W) in [-1,1] and unit normals (B,H,W,3) in OpenCV axes; float32, CPU.

    In memory at once, for tiles: one level's results of one picture, beside pictures and results.
    """
    depths, normals = [], []
    if isinstance(size, TiledSize):
        for picture in image:
            depth, vectors = _tiled(predict, picture, size)
            depths.append(depth[None])
            normals.append(normal_from_network(sizing.from_model(vectors[None], size.frame)))
    else:
        for depth, vectors in predict(len(image), lambda start, stop: sizing.to_model(image[start:stop], size)):
            depths.append(sizing.from_model(depth, size).clamp(-1, 1))
            normals.append(normal_from_network(sizing.from_model(vectors, size)))
    return torch.cat(depths), torch.cat(normals)


def _tiled(predict: Predict, picture: Tensor, size: TiledSize) -> tuple[Tensor, Tensor]:
    """(H,W,3) -> log-depth (H,W), and network normals (h,w,3) at the tiled size."""
    depth, normal = next(iter(predict(1, lambda start, stop: sizing.to_model(picture[None], size.whole))))
    depth, normal, frame = depth[0], normal[0], size.whole
    for level in size.levels:
        coarser = _enlarged(torch.cat([depth[..., None], normal], dim=-1), frame, level.frame)
        depth, normal = _level(predict, picture, level, coarser)
        frame = level.frame
    return _at_full_size(depth, frame, picture), normal


def _level(predict: Predict, picture: Tensor, level: Level, coarser: Tensor) -> tuple[Tensor, Tensor]:
    """Log-depth (h,w) and network normals (h,w,3) of a level; coarser (h,w,4): both of the level before, enlarged."""
    plan = level.plan
    large = sizing.to_model(picture[None], level.frame)[0]

    def tiles(start: int, stop: int) -> Tensor:
        return torch.stack([plan.cut(large, number) for number in range(start, stop)])

    parts: list[Tensor] = []
    merger = tiling.NormalMerger(plan)
    for log_depth, normal in predict(len(plan), tiles):
        for depth_part, normal_part in zip(log_depth, normal, strict=True):
            merger.add(len(parts), normal_part)
            parts.append(depth_part)
    depth = add_level(plan, parts, coarser[..., 0].contiguous())
    return depth, add_normal_level(plan, merger.result(), coarser[..., 1:])


def _enlarged(values: Tensor, frame: sizing.Frame, onto: sizing.Frame) -> Tensor:
    """Values (h,w,C) of `frame` at the size of `onto`, its padding included."""
    between = replace(frame, height=onto.resized_height, width=onto.resized_width)
    enlarged = sizing.from_model(values[None], between).movedim(-1, 1)
    right, below = onto.padded_width - onto.resized_width, onto.padded_height - onto.resized_height
    return torch.nn.functional.pad(enlarged, (0, right, 0, below), mode="replicate")[0].movedim(0, -1)


def _at_full_size(depth: Tensor, frame: sizing.Frame, picture: Tensor) -> Tensor:
    """Log-depth (h,w) of a frame at the size of the picture (H,W,3), its soft edges where the picture's are.

    At the frame's size first, where they are fewest pixels wide; once more at twice that size, if the picture has
    it: enlarging has made them softer.
    """
    depth = depth[: frame.resized_height, : frame.resized_width]
    height, width = picture.shape[:2]
    for factor, steps in ((1, STEPS), (2, STEPS[2:])):
        rows, columns = (min(full, factor * side) for full, side in zip((height, width), depth.shape, strict=True))
        if factor > 1 and (rows, columns) == tuple(depth.shape):
            break
        depth = _resized(depth[..., None], rows, columns)[..., 0]
        depth = sharpen_soft_edges(depth, _resized(picture, rows, columns), steps)
    # Averages may leave the range by a rounding.
    return _resized(depth[..., None], height, width)[..., 0].clamp(-1, 1)


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    """(H,W,C) at another size."""
    frame = sizing.Frame(*values.shape[:2], height, width, height, width)
    return sizing.to_model(values[None], frame)[0]
