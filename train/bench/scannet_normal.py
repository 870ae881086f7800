"""ScanNet normals: 300 images of `dsine_eval.zip`. Layout: scannet/<scene>/000000_img.png, 000000_normal.png.

The truth and the choice of images are FrameNet's.
"""

from __future__ import annotations

from train.bench import dsine
from train.bench.archive import Archive
from train.bench.protocol import NORMAL, Benchmark, Member


def find(archive: Archive) -> list[Member]:
    return dsine.find(archive, "scannet", r"scene\d+_\d+", ".png")


BENCHMARK = Benchmark("scannet-normal", "ScanNet (Indoor)", NORMAL, dsine.ARCHIVE, 300, find, dsine.read_png)
