"""Saves every kind of file, in a process of its own, on a disk that lets no file grow beyond a few kilobytes.

Prints one line of JSON for each: [kind, type of the exception, its message, names left in the folder]."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch

from fe2e_core.exr import EXR_PRESETS, write_exr
from fe2e_core.files import write_new
from fe2e_core.npz import write_npz
from fe2e_core.png16 import encode_png16
from fe2e_core.tensorfile import write_tensors

LIMIT = 20_000


def geometry(b: int = 1, h: int = 64, w: int = 80) -> dict:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) + 0.1

    return {"log_depth": random(b, h, w), "normal": random(b, h, w, 3), "mask": random(b, h, w) > 0.5, "image": random(b, h, w, 3),
            "depth": random(b, h, w), "intrinsics": torch.eye(3).expand(b, 3, 3)}  # fmt: skip


def writers(folder: Path) -> dict:
    whole = geometry()
    picture = encode_png16(whole["normal"][0])
    tensors = {name: torch.rand(50, 50) for name in "abc"}
    return {
        "npz": lambda: write_new(folder / "a.npz", lambda path: write_npz(path, whole)),
        "stored npz": lambda: write_new(folder / "a.npz", lambda path: write_npz(path, whole, compress=False)),
        "exr": lambda: write_new(folder / "a.exr", lambda path: write_exr(path, whole, 0, next(iter(EXR_PRESETS)))),
        "png": lambda: write_new(folder / "a.png", lambda path: Path(path).write_bytes(picture)),
        "safetensors": lambda: write_tensors(folder / "a.safetensors", tensors, {}),
    }


def main(folder: Path, limit: int) -> None:
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for kind, write in writers(folder).items():
        found: BaseException | None = None
        try:
            write()
        except Exception as error:
            found = error
        print(json.dumps([kind, [t.__name__ for t in type(found).__mro__] if found else None, str(found), sorted(os.listdir(folder))]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
