"""Sintel normals: 1064 images of `dsine_eval.zip`. Layout: sintel/alley_1/frame_0001_img.png, frame_0001_normal.exr.

The truth was made by DSINE's authors: planes fitted to the depth without crossing its edges.
"""

from __future__ import annotations

from train.bench import dsine
from train.bench.archive import Archive
from train.bench.protocol import NORMAL, Benchmark, Member


def find(archive: Archive) -> list[Member]:
    return dsine.find(archive, "sintel", r"[^/]+", ".exr")


BENCHMARK = Benchmark("sintel", "Sintel (Outdoor)", NORMAL, dsine.ARCHIVE, 1064, find, dsine.read_exr)
