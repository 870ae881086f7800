"""Pictures far larger than the network's size: one pass over the whole, then tiles for the detail."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..fe2e_core import sizing, tiling
from ..fe2e_core.geometry import normal_from_network
from .prediction import Run
from .types import FE2EModel

logger = logging.getLogger(__name__)


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


def estimate_tiled(model: FE2EModel, image: Tensor, size: TiledSize, chunk: int) -> tuple[Tensor, Tensor]:
    """(B,H,W,3) -> log-depth (B,H,W) and OpenCV normals (B,H,W,3); float32, CPU.

    In memory at once: the tiles' results of one picture, beside pictures and results.
    """
    run = Run(model, chunk, image.shape[0] * (1 + len(size.plan)))
    depths, normals = [], []
    for picture in image:
        log_depth, normal = _one(run, picture, size)
        depths.append(sizing.from_model(log_depth[None], size.frame))
        normals.append(normal_from_network(sizing.from_model(normal[None], size.frame)))
    return torch.cat(depths), torch.cat(normals)


def _one(run: Run, picture: Tensor, size: TiledSize) -> tuple[Tensor, Tensor]:
    """(H,W,3) -> log-depth (h,w) and network normals (h,w,3) at the tiled size."""
    plan, frame = size.plan, size.frame
    reference, _ = next(iter(run.predict(1, lambda start, stop: sizing.to_model(picture[None], size.whole))))
    large = sizing.to_model(picture[None], frame)[0]

    def tiles(start: int, stop: int) -> Tensor:
        return torch.stack([plan.cut(large, number) for number in range(start, stop)])

    parts: list[Tensor] = []
    merger = tiling.NormalMerger(plan)
    for log_depth, normal in run.predict(len(plan), tiles):
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
