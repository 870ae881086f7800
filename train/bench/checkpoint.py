"""The method under test is an FE2E checkpoint, run through diffusers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from train.bench.estimate import Estimate
from train.predictor import GeometryPredictor, PredictionFailed, SizeChoice

_ENDS = 2**20


class CheckpointPredictor:
    """See `Predictor`. One pass gives depth and normals. size: the mode that chooses the network's size, "reference"
    for the released evaluation's. Raises what reading a checkpoint raises."""

    def __init__(self, path: Path, name: str, size: str, dtype: str, device: torch.device):
        self.name = name
        self.identity = {"checkpoint": path.name, "fingerprint": fingerprint(path), "size": size, "dtype": dtype}
        self._size = SizeChoice(mode=size)
        self._network = GeometryPredictor(path, dtype, device)

    def __call__(self, benchmark: str, task: str, name: str, image: Tensor, size: tuple[int, int]) -> Estimate:
        try:
            geometry = self._network(image, self._size)
        except PredictionFailed as error:
            raise ValueError(f"{benchmark}, {name}: {error}") from error
        return Estimate(geometry["log_depth"][0], geometry["normal"][0], label=True)


def fingerprint(path: Path) -> str:
    """Tells two checkpoints apart without reading gigabytes: size, first and last mebibyte. OSError if unreadable."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = file.seek(0, 2)
        digest.update(str(length).encode())
        for start in (0, max(0, length - _ENDS)):
            file.seek(start)
            digest.update(file.read(_ENDS))
    return digest.hexdigest()[:32]
