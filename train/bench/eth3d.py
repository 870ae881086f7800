"""ETH3D: 454 photographs of `eth3d.tar` at 6048x4032.

Layout: rgb/<scene>/images/dslr_images/<frame>.JPG and, in spite of its name raw little-endian float32, row by row,
depth/<scene>_dslr_depth/<scene>/ground_truth_depth/dslr_images/<frame>.JPG; infinity where there is no measurement.
"""

from __future__ import annotations

import numpy as np

from train.bench.archive import Archive
from train.bench.decoding import picture
from train.bench.protocol import DEPTH, Benchmark, Member, Sample, depth_sample, members

NEAR = 1e-5
FIT_SIDE = 1024


def find(archive: Archive) -> list[Member]:
    pattern = r"(?P<name>rgb/(?P<scene>[^/]+)/images/dslr_images/(?P<frame>[^/]+))\.JPG"
    truth = "depth/{scene}_dslr_depth/{scene}/ground_truth_depth/dslr_images/{frame}.JPG"
    return members(archive, pattern, truth)


def read(archive: Archive, member: Member) -> Sample:
    image = picture(archive.read(member.image), member.image)
    data = archive.read(member.truth)
    height, width = image.shape[:2]
    if len(data) != 4 * height * width:
        raise ValueError(
            f"{member.truth}: {len(data)} bytes; expected {4 * height * width}, a float32 for each pixel of the "
            f"{width}x{height} photograph (the distorted one, not an undistorted one)"
        )
    depth = np.frombuffer(data, dtype="<f4").reshape(height, width)
    return depth_sample(member.name, image, depth, np.isfinite(depth) & (depth > NEAR))


BENCHMARK = Benchmark("eth3d", "ETH3D (Various)", DEPTH, "eth3d.tar", 454, find, read, NEAR, fit_side=FIT_SIDE)
