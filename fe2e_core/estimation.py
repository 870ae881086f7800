"""From pictures of any size to geometry at exactly that size, whatever it is that runs the network.

Small pictures are one model input. Pictures far larger than the trained size can be worked on in tiles: one
pass over the whole says where everything is, and the tiles add the detail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import sizing, tiling
from .geometry import normal_from_network

logger = logging.getLogger(__name__)

TILED = "tiled"
MODES = (*sizing.MODES, TILED)

Predict = Callable[[int, Callable[[int, int], Tensor]], Iterator[tuple[Tensor, Tensor]]]
"""`predict(count, pictures)`, where `pictures(start, stop)` gives model inputs (b,h,w,3) in [0,1] of that range, all
of one size with sides that are multiples of 16: log-depth (b,h,w) in [-1,1] and normals (b,h,w,3) in network axes,
chunk by chunk, float32, CPU."""


@dataclass(frozen=True)
class TiledSize:
    """whole: how the whole picture becomes one model input. frame: the larger size that is cut into tiles."""

    whole: sizing.Frame
    frame: sizing.Frame
    plan: tiling.TilePlan


def tiled_size(height: int, width: int, pixels: int, detail: float, overlap: float) -> TiledSize | None:
    """How to tile a picture, None when the picture is too small to gain from it.

    pixels: the budget the network was trained at. detail: how many times larger than the whole pass the tiled
    picture is, at most; it is never enlarged. overlap: share of a tile.
    """
    whole = sizing.fit(height, width, "trained", pixels=pixels)
    longest = min(max(height, width), round(detail * max(whole.resized_height, whole.resized_width)))
    if longest < 1.25 * max(whole.resized_height, whole.resized_width):
        return None
    frame = sizing.fit(height, width, "longest_side", longest_side=longest)
    plan = tiling.plan_tiles(frame.padded_height, frame.padded_width, whole.padded_height, whole.padded_width,
                             overlap)
    return TiledSize(whole, frame, plan)


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
    return 1 + len(size.plan) if isinstance(size, TiledSize) else 1


def estimate(predict: Predict, image: Tensor, size: sizing.Frame | TiledSize) -> tuple[Tensor, Tensor]:
    """(B,H,W,3) in [0,1] -> log-depth (B,H,W) in [-1,1] and unit normals (B,H,W,3) in OpenCV axes; float32, CPU.

    In memory at once, for tiles: the tiles' results of one picture, beside pictures and results.
    """
    depths, normals = [], []
    if isinstance(size, TiledSize):
        for picture in image:
            depth, vectors = _tiled(predict, picture, size)
            depths.append(sizing.from_model(depth[None], size.frame))
            normals.append(normal_from_network(sizing.from_model(vectors[None], size.frame)))
    else:
        for depth, vectors in predict(len(image), lambda start, stop: sizing.to_model(image[start:stop], size)):
            depths.append(sizing.from_model(depth, size).clamp(-1, 1))
            normals.append(normal_from_network(sizing.from_model(vectors, size)))
    return torch.cat(depths), torch.cat(normals)


def _tiled(predict: Predict, picture: Tensor, size: TiledSize) -> tuple[Tensor, Tensor]:
    """(H,W,3) -> log-depth (h,w) and network normals (h,w,3) at the tiled size."""
    plan, frame = size.plan, size.frame
    reference, _ = next(iter(predict(1, lambda start, stop: sizing.to_model(picture[None], size.whole))))
    large = sizing.to_model(picture[None], frame)[0]

    def tiles(start: int, stop: int) -> Tensor:
        return torch.stack([plan.cut(large, number) for number in range(start, stop)])

    parts: list[Tensor] = []
    merger = tiling.NormalMerger(plan)
    for log_depth, normal in predict(len(plan), tiles):
        for depth_part, normal_part in zip(log_depth, normal, strict=True):
            merger.add(len(parts), normal_part)
            parts.append(depth_part)
    whole = _enlarged(reference, size)
    solution = tiling.solve_tiles(plan, parts, whole)
    return tiling.merge_log_depth(plan, parts, solution), merger.result()


def _enlarged(reference: Tensor, size: TiledSize) -> Tensor:
    """The whole pass (1,h,w) at the tiled size, its padding included."""
    frame = size.frame
    onto = replace(size.whole, height=frame.resized_height, width=frame.resized_width)
    enlarged = sizing.from_model(reference, onto)
    right, below = frame.padded_width - frame.resized_width, frame.padded_height - frame.resized_height
    return torch.nn.functional.pad(enlarged[None], (0, right, 0, below), mode="replicate")[0, 0]
