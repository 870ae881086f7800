"""ScanNet depth: 800 validation images of `scannet_val_sampled_800_1.tar`.

Layout: <scene>/color/000300.jpg and <scene>/depth/000300.png (16-bit, millimetres, holes 0).
"""

from __future__ import annotations

from train.bench.archive import Archive
from train.bench.decoding import depth_png, picture
from train.bench.protocol import DEPTH, Benchmark, Member, Sample, depth_sample, members

NEAR, FAR = 1e-3, 10.0
_MILLIMETRES = 1000.0


def find(archive: Archive) -> list[Member]:
    pattern = r"(?P<name>(?P<scene>scene\d+_\d+)/color/(?P<frame>\d+))\.jpg"
    return members(archive, pattern, "{scene}/depth/{frame}.png")


def read(archive: Archive, member: Member) -> Sample:
    depth = depth_png(archive.read(member.truth), member.truth, _MILLIMETRES)
    mask = (depth > NEAR) & (depth < FAR)
    return depth_sample(member.name, picture(archive.read(member.image), member.image), depth, mask)


BENCHMARK = Benchmark(
    "scannet-depth", "ScanNet (Indoor)", DEPTH, "scannet_val_sampled_800_1.tar", 800, find, read, NEAR, FAR
)
