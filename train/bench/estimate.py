"""What a method says about one picture, and what a method has to be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """`depth` (h,w) float32, larger is farther (or nearer, for methods that predict disparity), of unknown scale and
    shift; FE2E's label in [-1,1] where `label` is true, else positive, as Marigold's [0,1]. `normal` (h,w,3) float32,
    OpenCV camera axes. Either may be None where the benchmark does not ask for it. Any size (h,w)."""

    depth: Tensor | None = None
    normal: Tensor | None = None
    label: bool = False


class Predictor(Protocol):
    """A method. `name` is its row's title; `identity` tells its results from those of another method or setting."""

    name: str
    identity: dict[str, str]

    def __call__(self, benchmark: str, task: str, name: str, image: Tensor, size: tuple[int, int]) -> Estimate:
        """The estimate for one image: key and task of the benchmark, the image's name in it, the picture (H,W,3) in
        [0,1], and (height, width) of the truth, the size it is best given in. Raises ValueError or OSError when there
        is none."""


def resized_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """(h,w) -> size: bilinear, pixel centres at halves, no antialiasing, as all evaluations here do it."""
    if tuple(depth.shape) == size:
        return depth
    return F.interpolate(depth[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]


def resized_normal(normal: Tensor, size: tuple[int, int]) -> Tensor:
    """(h,w,3) of any length -> unit vectors of the size given: bilinear, then normalised; zero stays zero."""
    if tuple(normal.shape[:2]) != size:
        planes = normal.float().permute(2, 0, 1)[None]
        normal = F.interpolate(planes, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    return F.normalize(normal.float(), dim=-1, eps=1e-9)


def positive(estimate: Estimate, depth: Tensor) -> Tensor:
    """The number that the alignments see: (label + 1) / 2 for labels, else the map as it is."""
    return (depth.double() + 1) / 2 if estimate.label else depth.double()
