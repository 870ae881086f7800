"""The whole geometry as a NumPy archive: raw floats under the keys of the contract, no pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

KEYS = (
    "log_depth",
    "normal",
    "mask",
    "image",
    "log_range",
    "log_near",
    "metric",
    "depth",
    "intrinsics",
    "confidence",
)
_REQUIRED = KEYS[:4]


def geometry_arrays(geometry: dict, *, image: bool = True) -> dict[str, np.ndarray]:
    """FE2E_GEOMETRY -> arrays under the same keys: float32, bool for `mask` and `metric` (0-dimensional)."""
    arrays = {}
    for key in KEYS:
        if key not in geometry or geometry[key] is None or (key == "image" and not image):
            continue
        value = geometry[key]
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            array = value.numpy() if value.dtype == torch.bool else value.to(torch.float32).numpy()
        else:
            array = np.asarray(bool(value))
        arrays[key] = array
    return arrays


def write_npz(path: str | Path, geometry: dict, *, image: bool = True, compress: bool = True) -> None:
    """Write FE2E_GEOMETRY to `path` (used as it is). The same geometry gives the same bytes."""
    arrays = geometry_arrays(geometry, image=image)
    with open(path, "wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)


def read_npz(path: str | Path) -> dict:
    """Read what `write_npz` wrote. Unknown arrays are left out.

    A file saved without the picture gets a black one. Raises FileNotFoundError, or ValueError naming the file
    if it is no such archive or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give the path of an .npz saved by Save Geometry (NPZ)"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in KEYS if key in archive.files}
    except (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: found no readable NumPy archive ({error}), expected one of Save Geometry (NPZ)"
        ) from error
    missing = [key for key in _REQUIRED if key not in arrays and key != "image"]
    if missing:
        raise ValueError(
            f"{path}: lacks {', '.join(missing)}; expected an archive saved by Save Geometry (NPZ)"
        )
    geometry: dict = {
        key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in arrays.items() if key != "metric"
    }
    geometry["mask"] = geometry["mask"].to(torch.bool)
    geometry.setdefault("image", torch.zeros(*geometry["log_depth"].shape, 3))
    if "metric" in arrays:
        geometry["metric"] = bool(arrays["metric"])
    return geometry
