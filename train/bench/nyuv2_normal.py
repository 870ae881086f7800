"""NYUv2 normals: 654 images of `dsine_eval.zip`. Layout: nyuv2/test/000000_img.png, 000000_normal.png.

The truth is GeoNet's. The archive also holds the training images, which are left out.
"""

from __future__ import annotations

from train.bench import dsine
from train.bench.archive import Archive
from train.bench.protocol import NORMAL, Benchmark, Member


def find(archive: Archive) -> list[Member]:
    return dsine.find(archive, "nyuv2", r"test", ".png")


BENCHMARK = Benchmark("nyuv2-normal", "NYUv2 (Indoor)", NORMAL, dsine.ARCHIVE, 654, find, dsine.read_png)
