"""The method under test is any other program: its predictions lie in a folder, one file an image.

    <folder>/<benchmark>/<image's name in the benchmark>.<npz | npy | exr | png | tif>

<benchmark> is the key (nyuv2-depth, kitti, ...). The file may also carry the names that Marigold's scripts write
(pred_0001.npy for rgb_0001.png), or end in _depth or _normal.

NPZ    `log_depth` (FE2E's label), else `depth`; `normal`. Leading axes of one are dropped
NPY    one array: (H,W) depth, or (H,W,3) or (3,H,W) normals
EXR    `log_depth`, else Z (V, Y) for depth; N.x N.y N.z, or R G B, or X Y Z for normals. A file of Save Geometry (EXR)
       is known by its header and read with its own axes
PNG    depth: one channel of 16 bits, any scale; normals: 8 or 16 bits, colour = (n + 1) / 2
TIFF   as PNG, or float
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fe2e_core.exr import read_exr
from fe2e_core.geometry import NORMAL_CONVENTIONS
from train.bench.decoding import exr_channels
from train.bench.estimate import Estimate
from train.bench.protocol import DEPTH

ENDINGS = (".npz", ".npy", ".exr", ".png", ".tif", ".tiff")


class FolderPredictor:
    """See `Predictor`. convention: one of `NORMAL_CONVENTIONS`, the axes of stored normals (those of our own NPZ and
    EXR are known). label: single depth maps are FE2E's label in [-1,1]. Raises FileNotFoundError for no folder,
    ValueError for an unknown convention."""

    def __init__(self, folder: Path, name: str, convention: str = "OpenCV", label: bool = False):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder of predictions")
        if convention not in NORMAL_CONVENTIONS:
            raise ValueError(
                f"normal convention '{convention}' is unknown; expected one of {', '.join(NORMAL_CONVENTIONS)}"
            )
        self.name = name
        self.identity = {"predictions": str(folder.resolve()), "convention": convention, "label": str(label)}
        self._folder, self._label = folder, label
        self._signs = torch.tensor(NORMAL_CONVENTIONS[convention], dtype=torch.float32)

    def __call__(self, benchmark: str, task: str, name: str, image: Tensor, size: tuple[int, int]) -> Estimate:
        path = self._find(benchmark, task, name)
        depth, normal, label, ours = read_prediction(path, task)
        if normal is not None and not ours:
            normal = normal * self._signs
        return Estimate(depth, normal, label or (self._label and path.suffix != ".npz"))

    def _find(self, benchmark: str, task: str, name: str) -> Path:
        root = self._folder / benchmark
        for stem in candidates(name, task):
            for ending in ENDINGS:
                path = root / f"{stem}{ending}"
                if path.is_file():
                    return path
        raise FileNotFoundError(
            f"{root / name}: no prediction with one of the endings {' '.join(ENDINGS)}; the name must be the image's "
            "path in the archive, without its ending"
        )


def candidates(name: str, task: str) -> Iterator[str]:
    """Names under which a prediction for the image `name` is looked for, the first that exists counts."""
    folder, _, last = name.rpartition("/")
    inside = f"{folder}/" if folder else ""
    short = last.removeprefix("rgb_")
    for stem in dict.fromkeys((last, f"pred_{last}", f"pred_{short}", short)):
        yield inside + stem
        yield f"{inside}{stem}_{task}"


def read_prediction(path: Path, task: str) -> tuple[Tensor | None, Tensor | None, bool, bool]:
    """(depth, normals, whether depth is a label, whether normals are known to be in OpenCV axes); what the task does
    not ask for may be None. Raises ValueError naming the file."""
    depth: np.ndarray | None = None
    normal: np.ndarray | None = None
    label = ours = False
    if path.suffix == ".npz":
        depth, normal, label, ours = _from_npz(path)
    elif path.suffix == ".exr":
        depth, normal, label, ours = _from_exr(path, task)
    else:
        array = _array(path, task)
        if array.ndim == 2:
            depth = array
        else:
            normal = array
            if task == DEPTH:  # a grey picture stored in three channels
                depth = array.mean(axis=-1)
    wanted = depth if task == DEPTH else normal
    if wanted is None or wanted.ndim != (2 if task == DEPTH else 3):
        shape = None if wanted is None else wanted.shape
        raise ValueError(f"{path}: holds no {task} (found {shape}); expected (H,W) for depth, (H,W,3) for normals")
    return _tensor(depth), _tensor(normal), label, ours


def _tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _squeezed(array: np.ndarray, path: Path) -> np.ndarray:
    """(H,W) or (H,W,3) of what was stored with axes of one, or channels first."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: numbers of type {array.dtype}; expected floats or integers")
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        raise ValueError(f"{path}: shape {array.shape}; expected (H,W), (H,W,3) or (3,H,W), one image a file")
    return array


def _from_npz(path: Path) -> tuple[np.ndarray | None, np.ndarray | None, bool, bool]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = set(archive.files)
            label = "log_depth" in keys
            depth = archive["log_depth"] if label else archive["depth"] if "depth" in keys else None
            normal = archive["normal"] if "normal" in keys else None
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: {error}; expected an archive of numpy.savez") from error
    return (
        None if depth is None else _squeezed(depth, path),
        None if normal is None else _squeezed(normal, path),
        label,
        label,  # our own archives hold both, and OpenCV axes
    )


def _from_exr(path: Path, task: str) -> tuple[np.ndarray | None, np.ndarray | None, bool, bool]:
    channels = exr_channels(path.read_bytes(), str(path))
    if "fe2ePreset" in exr_header(path):
        geometry = read_exr(path)
        return geometry["log_depth"][0].numpy(), geometry["normal"][0].numpy(), True, True
    short = {name.rpartition(".")[2].upper(): array for name, array in channels.items()}
    label = "LOG_DEPTH" in short
    depth = next((short[key] for key in ("LOG_DEPTH", "Z", "DEPTH", "V", "Y", "R") if key in short), None)
    named = ["N.x", "N.y", "N.z"]
    if all(name in channels for name in named):
        return depth, np.stack([channels[name] for name in named], axis=-1), label, False
    for group in ("RGB", "XYZ"):
        if all(key in short for key in group):
            return depth, np.stack([short[key] for key in group], axis=-1), label, False
    return depth, None, label, False


def exr_header(path: Path) -> dict:
    """The attributes of an OpenEXR file."""
    import OpenEXR

    with OpenEXR.File(str(path), header_only=True) as file:
        return dict(file.header())


def _array(path: Path, task: str) -> np.ndarray:
    import cv2

    if path.suffix == ".npy":
        try:
            return _squeezed(np.load(path, allow_pickle=False), path)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: {error}; expected one array of numpy.save") from error
    array = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError(f"{path}: is no picture that can be read")
    if array.ndim == 3:
        array = array[..., 2::-1]
    if array.dtype.kind == "f":
        return _squeezed(array, path)
    if task == DEPTH and array.dtype != np.uint16:
        raise ValueError(f"{path}: {array.dtype} depth; 8 bits have lost its precision, store 16 bits or floats")
    values = array.astype(np.float32) / np.iinfo(array.dtype).max
    return values if task == DEPTH else _squeezed(values * 2 - 1, path)
