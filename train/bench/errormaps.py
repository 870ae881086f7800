"""Where a prediction is wrong: picture, truth, prediction and error of one image on one sheet."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fe2e_core.colors import apply_color_map
from fe2e_core.comparison import side_by_side
from fe2e_core.files import Unfinished
from fe2e_core.geometry import encode_normal
from fe2e_core.percentiles import percentile
from train.bench.estimate import Estimate, resized_depth, resized_normal
from train.bench.protocol import DEPTH, Benchmark, Sample
from train.bench.score import aligned, angle_map

TILE = 640
"""Longest side of each of the four pictures, in pixels."""

WORST_RELATIVE, WORST_DEGREES = 0.2, 60.0
"""What the error's colour map ends at (red): relative depth error and angle."""

_COLOURS = "OpenGL"
_GAP = 4


def error_sheet(benchmark: Benchmark, alignment: str, estimate: Estimate, sample: Sample) -> Tensor:
    """(h,w,3) in [0,1]: above the picture and the truth, below the prediction and its error, both grey where no pixel
    of the truth counts. Depth is drawn as its logarithm, near is red; the error runs from near black (none) over blue to
    red."""
    height, width = sample.truth.shape[:2]
    mask = sample.mask.cpu()
    if benchmark.task == DEPTH:
        depth = resized_depth(estimate.depth, (height, width))
        metres = aligned(benchmark, alignment, estimate, depth, sample).depth.cpu()
        truth = sample.truth.double().cpu()
        ends = percentile(truth[mask].log(), (1, 99)).tolist()
        shown = [_log_colours(values, ends) for values in (truth, metres)]
        error = (metres - truth).abs() / truth.clamp_min(1e-9) / WORST_RELATIVE
    else:
        normal = resized_normal(estimate.normal, (height, width)).cpu()
        shown = [encode_normal(vectors, _COLOURS) for vectors in (sample.truth.cpu(), normal)]
        error = angle_map(estimate, sample).cpu() / WORST_DEGREES
    wrong = apply_color_map(error, "turbo")
    tiles = [sample.image.cpu(), _where(mask, shown[0]), shown[1], _where(mask, wrong)]
    scale = min(1.0, TILE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    tiles = [_shrunk(tile, size) for tile in tiles]
    rows = [side_by_side([a[None], b[None]], gap=_GAP) for a, b in (tiles[:2], tiles[2:])]
    return side_by_side(rows, gap=_GAP, vertical=True)[0]


def write_sheet(path: Path, sheet: Tensor) -> None:
    """JPEG; the folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (sheet.clamp(0, 1) * 255).round().byte().numpy()
    with Unfinished(path) as file:
        Image.fromarray(pixels).save(file, format="JPEG", quality=92)


def _log_colours(metres: Tensor, ends: list[float]) -> Tensor:
    low, high = ends
    return apply_color_map((metres.clamp_min(1e-9).log() - low) / max(high - low, 1e-6), "spectral")


def _where(mask: Tensor, colours: Tensor) -> Tensor:
    return torch.where(mask[..., None], colours.float(), 0.5)


def _shrunk(picture: Tensor, size: tuple[int, int]) -> Tensor:
    planes = picture.float().permute(2, 0, 1)[None]
    if tuple(planes.shape[-2:]) != size:
        planes = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    return planes[0].permute(1, 2, 0)
