"""DIODE: 325 indoor and 446 outdoor validation images of `diode_val.tar`; its own mask decides alone what counts.

Layout: {indoors,outdoor}/<scene>/<scan>/<name>.png, <name>_depth.npy (H,W,1) float32 metres, <name>_depth_mask.npy.
"""

from __future__ import annotations

import numpy as np

from train.bench.archive import Archive
from train.bench.decoding import npy, picture
from train.bench.protocol import DEPTH, Benchmark, Member, Sample, depth_sample, members

NEAR, FAR = 0.6, 350.0


def find(archive: Archive) -> list[Member]:
    pattern = r"(?P<name>(?:indoors|outdoor)/[^/]+/[^/]+/[^/]+)\.png"
    return members(archive, pattern, "{name}_depth.npy", "{name}_depth_mask.npy")


def _plane(archive: Archive, name: str) -> np.ndarray:
    array = npy(archive.read(name), name).squeeze()
    if array.ndim != 2:
        raise ValueError(f"{name}: shape {array.shape}; expected (height, width) or (height, width, 1)")
    return array


def read(archive: Archive, member: Member) -> Sample:
    depth, mask = _plane(archive, member.truth).astype(np.float32), _plane(archive, member.mask).astype(bool)
    return depth_sample(member.name, picture(archive.read(member.image), member.image), depth, mask)


BENCHMARK = Benchmark("diode", "DIODE (Various)", DEPTH, "diode_val.tar", 771, find, read, NEAR, FAR)
