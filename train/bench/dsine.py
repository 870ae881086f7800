"""What the four normal benchmarks in `dsine_eval.zip` share: <image>_img.png beside <image>_normal.{png,exr}.

All normals are in DSINE's axes, x left, y up, z toward the camera, and evaluated at the size they have.
"""

from __future__ import annotations

import numpy as np

from train.bench.archive import Archive
from train.bench.decoding import colours, exr_vectors, picture
from train.bench.protocol import Member, Sample, members, normal_sample

ARCHIVE = "dsine_eval.zip"
_LONG = 0.5


def find(archive: Archive, folder: str, inner: str, ending: str) -> list[Member]:
    """Images <folder>/<inner>/<x>_img.png whose truth is <x>_normal<ending>; `inner` is a regular expression. An
    image's name is <inner>/<x>, as in DSINE's lists."""
    return members(archive, rf"{folder}/(?P<name>{inner}/[^/]+)_img\.(?:png|jpg)", folder + "/{name}_normal" + ending)


def read_png(archive: Archive, member: Member) -> Sample:
    """Normals as 8-bit colours (n + 1) / 2; black does not count."""
    stored = colours(archive.read(member.truth), member.truth)
    normal = stored.astype(np.float32) / 255 * 2 - 1
    image = picture(archive.read(member.image), member.image)
    return normal_sample(member.name, image, normal, stored.astype(np.int32).sum(axis=-1) > 0)


def read_exr(archive: Archive, member: Member) -> Sample:
    """Normals as float vectors; those shorter than a half do not count."""
    normal = exr_vectors(archive.read(member.truth), member.truth)
    image = picture(archive.read(member.image), member.image)
    return normal_sample(member.name, image, normal, np.linalg.norm(normal, axis=-1) > _LONG)
