"""KITTI depth, Eigen's split: `kitti_eigen_split_test.tar`, 697 images, 652 with ground truth.

Layout: <date>/<drive>/image_02/data/<frame>.png and <drive>/proj_depth/groundtruth/image_02/<frame>.png (16-bit,
1/256 m, holes 0). Picture and depth are cropped to 1216x352 (bottom rows, centred columns); then Eigen's fractions of
that crop count.
"""

from __future__ import annotations

import numpy as np

from train.bench.archive import Archive
from train.bench.decoding import depth_png, picture
from train.bench.protocol import DEPTH, Benchmark, Member, Sample, depth_sample, members

NEAR, FAR = 1e-5, 80.0
HEIGHT, WIDTH = 352, 1216
EIGEN_ROWS, EIGEN_COLUMNS = (0.3324324, 0.91351351), (0.0359477, 0.96405229)
_STEPS = 256.0


def find(archive: Archive) -> list[Member]:
    pattern = r"(?P<name>\d{4}_\d\d_\d\d/(?P<drive>[^/]+_sync)/image_02/data/(?P<frame>\d+))\.png"
    truth = "{drive}/proj_depth/groundtruth/image_02/{frame}.png"
    return members(archive, pattern, truth, complete=False)


def benchmark_crop(array: np.ndarray, name: str) -> np.ndarray:
    """(H,W) or (H,W,3) -> the KITTI benchmark's 352 rows and 1216 columns."""
    height, width = array.shape[:2]
    if height < HEIGHT or width < WIDTH:
        raise ValueError(f"{name}: {width}x{height}; expected at least {WIDTH}x{HEIGHT}")
    top, left = height - HEIGHT, (width - WIDTH) // 2
    return array[top : top + HEIGHT, left : left + WIDTH]


def read(archive: Archive, member: Member) -> Sample:
    depth = benchmark_crop(depth_png(archive.read(member.truth), member.truth, _STEPS), member.truth)
    image = benchmark_crop(picture(archive.read(member.image), member.image), member.image)
    rows, columns = (
        slice(*(int(fraction * side) for fraction in fractions))
        for side, fractions in ((HEIGHT, EIGEN_ROWS), (WIDTH, EIGEN_COLUMNS))
    )
    mask = np.zeros(depth.shape, dtype=bool)
    mask[rows, columns] = True
    mask &= (depth > NEAR) & (depth < FAR)
    return depth_sample(member.name, image, depth, mask)


BENCHMARK = Benchmark("kitti", "KITTI (Outdoor)", DEPTH, "kitti_eigen_split_test.tar", 652, find, read, NEAR, FAR)
