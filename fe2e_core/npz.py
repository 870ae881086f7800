"""The whole geometry as a NumPy archive: raw floats under the keys of the contract, no pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .assumptions import ASSUMABLE, mark
from .npyfiles import read_npz_arrays

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
    "assumed",
)
_REQUIRED = KEYS[:4]


def geometry_arrays(geometry: dict, *, image: bool = True) -> dict[str, np.ndarray]:
    """FE2E_GEOMETRY -> arrays under the same keys: float32, bool for `mask`, `metric` (0-dimensional) and `assumed`
    (2,), whether log_range and intrinsics are."""
    arrays = {}
    for key in KEYS:
        if key not in geometry or geometry[key] is None or (key == "image" and not image):
            continue
        value = geometry[key]
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            array = value.numpy() if value.dtype == torch.bool else value.to(torch.float32).numpy()
        elif key == "assumed":
            array = np.array([name in value for name in ASSUMABLE])
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
    if it is no such archive, lacks a key or holds arrays that do not belong together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give the path of an .npz saved by Save Geometry (NPZ)"
        )
    try:
        arrays = read_npz_arrays(path, KEYS)
    except ValueError as error:
        raise ValueError(
            f"{path}: found no readable NumPy archive ({error}), expected one of Save Geometry (NPZ)"
        ) from error
    missing = [key for key in _REQUIRED if key not in arrays and key != "image"]
    if missing:
        raise ValueError(
            f"{path}: lacks {', '.join(missing)}; expected an archive saved by Save Geometry (NPZ)"
        )
    _check_shapes(path, arrays)
    geometry: dict = {
        key: torch.from_numpy(np.ascontiguousarray(array.astype(bool if key == "mask" else np.float32, copy=False)))
        for key, array in arrays.items()
        if key not in ("metric", "assumed")
    }
    geometry.setdefault("image", torch.zeros(*geometry["log_depth"].shape, 3))
    if "metric" in arrays:
        geometry["metric"] = bool(arrays["metric"])
    if "assumed" in arrays:
        mark(geometry, assumed=[name for name, yes in zip(ASSUMABLE, arrays["assumed"].tolist(), strict=True) if yes])
    return geometry


def _check_shapes(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless all arrays are of one batch of pictures of one size, as the contract has them."""
    size = arrays["log_depth"].shape
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"{path}: 'log_depth' has shape {size}, expected (pictures, height, width)")
    expected = {
        **dict.fromkeys(("log_depth", "mask", "depth", "confidence"), size),
        **dict.fromkeys(("normal", "image"), (*size, 3)),
        **dict.fromkeys(("log_range", "log_near"), size[:1]),
        "intrinsics": (size[0], 3, 3),
        "metric": (),
        "assumed": (len(ASSUMABLE),),
    }
    for key, array in arrays.items():
        if array.shape != expected[key]:
            raise ValueError(f"{path}: '{key}' has shape {array.shape}, expected {expected[key]}; the file is damaged")
