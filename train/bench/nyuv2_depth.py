"""NYUv2 depth: 654 test images of `nyu_labeled_extracted.tar`, Eigen's crop.

Layout: test/<room>/rgb_0001.png, depth_0001.png (16-bit, millimetres, holes 0), filled_0001.png (not used).
"""

from __future__ import annotations

import numpy as np

from train.bench.archive import Archive
from train.bench.decoding import depth_png, picture
from train.bench.protocol import DEPTH, Benchmark, Member, Sample, depth_sample, members

NEAR, FAR = 1e-3, 10.0
ROWS, COLUMNS = slice(45, 471), slice(41, 601)
_MILLIMETRES = 1000.0


def find(archive: Archive) -> list[Member]:
    pattern = r"(?P<name>test/(?P<room>[^/]+)/rgb_(?P<frame>\d+))\.png"
    return members(archive, pattern, "test/{room}/depth_{frame}.png")


def read(archive: Archive, member: Member) -> Sample:
    depth = depth_png(archive.read(member.truth), member.truth, _MILLIMETRES)
    if depth.shape != (480, 640):
        raise ValueError(f"{member.truth}: {depth.shape[1]}x{depth.shape[0]}; the crop is defined for 640x480")
    mask = np.zeros(depth.shape, dtype=bool)
    mask[ROWS, COLUMNS] = True
    mask &= (depth > NEAR) & (depth < FAR)
    return depth_sample(member.name, picture(archive.read(member.image), member.image), depth, mask)


BENCHMARK = Benchmark(
    "nyuv2-depth", "NYUv2 (Indoor)", DEPTH, "nyu_labeled_extracted.tar", 654, find, read, NEAR, FAR
)
