"""What a benchmark is: where its images lie in the published archive, and how they count."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.bench.archive import Archive

DEPTH, NORMAL = "depth", "normal"


@dataclass(frozen=True)
class Member:
    """One image of a benchmark: its identity (a path without an ending, the same in every packing), and the archive's
    names of the picture, the truth and, where there is one, the mask."""

    name: str
    image: str
    truth: str
    mask: str = ""


@dataclass(frozen=True)
class Sample:
    """One image read. `image` (H,W,3) float32 sRGB in [0,1]; `truth` (h,w) float32 metres, planar, or (h,w,3) float32
    normals in OpenCV camera axes, of any length; `mask` (h,w) bool, true where a pixel counts. (h,w) is the size that
    counts; it is (H,W) in all nine benchmarks as far as is known."""

    name: str
    image: Tensor
    truth: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's protocol.

    key      its name on the command line and in file names
    title    the paper's column
    task     DEPTH or NORMAL
    archive  the published file's name
    images   how many images the published list holds (with ground truth)
    near, far  metres; a pixel counts between them, aligned depth is clipped to them. 0 and infinity for normals
    fit_side    the linear alignment is fitted on columns thinned as if the longer side had at most this many pixels;
                0 for all (Marigold's evaluation, which thins ETH3D)
    find     Archive -> every image with ground truth, in the archive's order of names
    read     reads one of them
    """

    key: str
    title: str
    task: str
    archive: str
    images: int
    find: Callable[[Archive], list[Member]]
    read: Callable[[Archive, Member], Sample]
    near: float = 0.0
    far: float = float("inf")
    fit_side: int = 0


def members(
    archive: Archive,
    pattern: str,
    truth: str,
    mask: str = "",
    complete: bool = True,
) -> list[Member]:
    """The images whose path ends in what `pattern` matches (a regular expression with the group `name`).

    `truth` and `mask` are templates of the pattern's groups, beside the matched part of the path. Where `complete`, an
    image without truth is an error, else it is left out. Raises ValueError when nothing matches: another archive, or
    another packing of it.
    """
    found, expression = [], re.compile(rf"(?P<root>(?:.*/)?){pattern}")
    for image in archive.names:
        match = expression.fullmatch(image)
        if match is None:
            continue
        groups = match.groupdict()
        beside = [groups["root"] + template.format(**groups) if template else "" for template in (truth, mask)]
        missing = [name for name in beside if name and name not in archive]
        if missing and complete:
            raise ValueError(f"{archive.path}: has '{image}' but not '{missing[0]}'; download the archive again")
        if not missing:
            found.append(Member(groups["name"], image, *beside))
    if not found:
        some = ", ".join(archive.names[:3]) or "nothing"
        raise ValueError(
            f"{archive.path}: no image lies where this benchmark has them ({pattern}); the archive holds {some}, ..."
        )
    return found


def chosen(found: list[Member], lines: list[str], source: str) -> list[Member]:
    """The images of a published list, in its order: the first word of a line is the picture's path, the second, where
    there is one, its truth ("None": there is none, the line is left out). Raises ValueError naming the first image
    that the archive lacks, or when the list is empty."""
    stems = {member.name: member for member in found}
    picked = []
    for line in lines:
        words = line.split()
        if not words or (len(words) > 1 and words[1] == "None"):
            continue
        stem = words[0].removeprefix("./").rpartition(".")[0].removesuffix("_img")
        if stem not in stems:
            raise ValueError(f"{source}: lists '{words[0]}', which the archive does not hold")
        picked.append(stems[stem])
    if not picked:
        raise ValueError(f"{source}: lists no image; expected one path a line")
    return picked


def depth_sample(name: str, image: np.ndarray, depth: np.ndarray, mask: np.ndarray) -> Sample:
    """Arrays of the shapes in `Sample`; pixels without a positive finite depth stop counting."""
    mask = mask & np.isfinite(depth) & (depth > 0)
    return Sample(name, _tensor(image), _tensor(np.where(mask, depth, 0)), torch.from_numpy(mask))


def normal_sample(name: str, image: np.ndarray, dsine: np.ndarray, mask: np.ndarray) -> Sample:
    """`dsine` (H,W,3) in DSINE's axes (x left, y up, z toward the camera): the OpenCV vector is its negative."""
    return Sample(name, _tensor(image), _tensor(-dsine), torch.from_numpy(mask))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
