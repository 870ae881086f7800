"""iBims-1 normals: 100 images of `dsine_eval.zip`. Layout: ibims/ibims/corridor_01_img.png, corridor_01_normal.exr.

The truth was made by DSINE's authors: planes fitted to the depth without crossing its edges.
"""

from __future__ import annotations

from train.bench import dsine
from train.bench.archive import Archive
from train.bench.protocol import NORMAL, Benchmark, Member


def find(archive: Archive) -> list[Member]:
    return dsine.find(archive, "ibims", r"ibims", ".exr")


BENCHMARK = Benchmark("ibims", "iBims-1 (Indoor)", NORMAL, dsine.ARCHIVE, 100, find, dsine.read_exr)
