"""Augmentation of a frame that keeps its geometry true."""

from __future__ import annotations

from dataclasses import replace

import torch

from train.data.frame import Frame


def mirror(frame: Frame) -> Frame:
    """Left and right exchanged: the picture is flipped, the normals' x changes its sign, and so does the
    camera's offset from the middle."""
    k = frame.intrinsics.clone()
    k[0, 2] = 1 - k[0, 2]
    k[0, 1] = -k[0, 1]
    return replace(
        frame,
        image=frame.image.flip(1),
        depth=frame.depth.flip(1),
        normal=frame.normal.flip(1) * torch.tensor([-1.0, 1.0, 1.0]),
        valid=frame.valid.flip(1),
        normal_valid=frame.normal_valid.flip(1),
        intrinsics=k,
    )
