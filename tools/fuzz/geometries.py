"""Saved geometry: NPZ, multi-layer EXR of every preset, and the state of a stabilised clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fe2e_core.exr import EXR_PRESETS, read_exr, write_exr
from fe2e_core.npz import read_npz, write_npz
from fe2e_core.temporal import DepthStabilizer, stabilize_clip
from tools.fuzz.models import write_lying_npz
from tools.fuzz.targets import Target, require

H, W = 12, 16


def _geometry(batch: int) -> dict:
    generator = torch.Generator().manual_seed(3)
    k = torch.tensor([[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])
    return {
        "log_depth": torch.rand(batch, H, W, generator=generator) * 2 - 1,
        "normal": torch.nn.functional.normalize(torch.randn(batch, H, W, 3, generator=generator), dim=-1),
        "mask": torch.rand(batch, H, W, generator=generator) > 0.3,
        "image": torch.rand(batch, H, W, 3, generator=generator),
        "log_range": torch.full((batch,), 1.5), "log_near": torch.full((batch,), 0.1), "metric": True,
        "depth": torch.rand(batch, H, W, generator=generator) + 0.5,
        "intrinsics": k.expand(batch, 3, 3).clone(),
        "confidence": torch.rand(batch, H, W, generator=generator),
    }  # fmt: skip


def _check(geometry: dict) -> None:
    """The contract of FE2E_GEOMETRY, as far as a file can break it."""
    shape = geometry["log_depth"].shape
    require(len(shape) == 3 and min(shape) > 0, "log_depth is (B, H, W)")
    expected = {"log_depth": shape, "mask": shape, "depth": shape, "confidence": shape, "normal": (*shape, 3), "image": (*shape, 3),
                "intrinsics": (shape[0], 3, 3), "log_range": shape[:1], "log_near": shape[:1]}  # fmt: skip
    for key, value in geometry.items():
        if key == "metric":
            require(isinstance(value, bool), "metric is a bool")
            continue
        require(tuple(value.shape) == tuple(expected[key]), f"{key} is {expected[key]}, not {tuple(value.shape)}")
        require(value.dtype == (torch.bool if key == "mask" else torch.float32), f"{key} is not {value.dtype}")


def _write_npz(folder: Path) -> None:
    write_npz(folder / "packed.npz", _geometry(2))
    write_npz(folder / "stored.npz", _geometry(1), image=False, compress=False)
    np.savez(folder / "pickled.npz", log_depth=np.array([{}]))
    vast = (1, 2**20, 2**20)
    write_lying_npz(folder / "vast.npz", {"log_depth": vast, "mask": vast, "normal": (*vast, 3)})


def _write_exr(folder: Path) -> None:
    for number, preset in enumerate(EXR_PRESETS):
        write_exr(folder / f"{number}.exr", _geometry(1), 0, preset)


def _write_state(folder: Path) -> None:
    geometry, solver = _geometry(3), DepthStabilizer()
    solver.frames[:] = stabilize_clip(geometry["log_depth"], geometry["mask"], geometry["image"], solver, None, True, None)
    (folder / "state.json").write_text(solver.to_json())


def _read_state(path: Path) -> None:
    """Read, and gone on with, as the node's 'continue' does."""
    solver = DepthStabilizer.from_json(path.read_text(encoding="utf-8", errors="replace"))
    geometry, before = _geometry(2), len(solver.frames)
    scales = stabilize_clip(geometry["log_depth"], geometry["mask"], geometry["image"], solver, None, False, None)
    require(len(scales) == 2 and len(solver.frames) == before + 2, "one scale for each frame")


TARGETS = (
    Target("geometry npz", _write_npz, lambda path: _check(read_npz(path)), ("packed.npz", "stored.npz"),
           liars=("pickled.npz", "vast.npz")),
    Target("geometry exr", _write_exr, lambda path: _check(read_exr(path)), tuple(f"{i}.exr" for i in range(len(EXR_PRESETS)))),
    Target("clip state", _write_state, _read_state, ("state.json",), ("scale state",)),
)  # fmt: skip
