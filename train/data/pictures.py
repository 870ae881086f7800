"""Reading pictures, 16-bit PNG, EXR and NPY arrays; whatever is wrong becomes a BadFrame that names the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from fe2e_core.npyfiles import read_npy_array
from train.data.frame import BadFrame

#: No compressed picture has more pixels for a byte: deflate's limit, with eight 1-bit pixels to a byte.
_MOST_PIXELS_PER_BYTE = 8 * 1032


def _open_cv(path: str, flags: int) -> np.ndarray:
    import cv2

    _require_file(path)
    # not imread: it knows no file names beyond the system's code page on Windows
    encoded = np.fromfile(path, dtype=np.uint8)
    _check_claim(path, encoded)
    # the tag that turns pictures is ignored: stored depth belongs to stored pixels
    array = cv2.imdecode(encoded, flags | cv2.IMREAD_IGNORE_ORIENTATION) if encoded.size else None
    if array is None:
        raise BadFrame(f"{path}: {encoded.size} bytes that are no picture; copy or download it again")
    return array


def _require_file(path: str) -> None:
    """Raise BadFrame when there is no such file, or when no file can have such a name."""
    try:
        there = Path(path).is_file()
    except OSError as error:
        raise BadFrame(f"{path}: {error.strerror}") from error
    if not there:
        raise BadFrame(f"{path}: there is no such file")


def _check_claim(path: str, encoded: np.ndarray) -> None:
    """Raise BadFrame when a picture's header claims more pixels than its bytes can hold: OpenCV would make room
    for them first.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit is about pictures from strangers
            with Image.open(io.BytesIO(encoded)) as picture:
                width, height = picture.size
    except Image.DecompressionBombError as error:
        raise BadFrame(f"{path}: {error}") from error
    except Exception:  # Pillow's readers raise anything; a format that it does not know is OpenCV's to judge
        return
    if width * height > _MOST_PIXELS_PER_BYTE * encoded.size:
        raise BadFrame(f"{path}: {encoded.size} bytes that claim {width}x{height} pixels; copy or download it again")


def read_picture(path: str) -> np.ndarray:
    """An 8- or 16-bit picture -> (H,W,3) float32 in [0,1], sRGB as stored; alpha is dropped, grey repeated.

    As it is stored also where a tag of its camera says that it is to be shown turned."""
    import cv2

    array = _open_cv(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if array.dtype not in (np.uint8, np.uint16):
        raise BadFrame(f"{path}: pixels are {array.dtype}; expected 8 or 16 bits a channel")
    return array[..., ::-1].astype(np.float32) / np.iinfo(array.dtype).max


def read_png16(path: str) -> np.ndarray:
    """A one-channel 16-bit PNG -> (H,W) uint16. 8-bit files are refused: depth in them has lost its
    precision.
    """
    import cv2

    array = _open_cv(path, cv2.IMREAD_UNCHANGED)
    if array.dtype != np.uint16 or array.ndim != 2:
        raise BadFrame(
            f"{path}: found {array.dtype} of shape {array.shape}; expected 16 bits and one channel"
        )
    return array


def read_array(path: str) -> np.ndarray:
    """PNG, EXR or NPY by the file's ending -> (H,W) or (H,W,C) in the stored numbers; colour channels in RGB
    order.
    """
    import cv2

    kind = Path(path).suffix.lower()
    if kind == ".npy":
        try:
            return read_npy_array(path)
        except ValueError as error:
            raise BadFrame(f"{path}: {error}; expected an array saved by numpy.save") from error
    if kind == ".exr":
        return _read_exr(path)
    array = _open_cv(path, cv2.IMREAD_UNCHANGED)
    return array if array.ndim == 2 else array[..., [2, 1, 0]]


def _read_exr(path: str) -> np.ndarray:
    import OpenEXR

    _require_file(path)
    try:
        with OpenEXR.File(path) as file:
            channels = {
                name.rpartition(".")[2].upper(): channel.pixels for name, channel in file.channels().items()
            }
    except Exception as error:  # the binding raises bare RuntimeErrors and others
        raise BadFrame(f"{path}: {error}; expected an OpenEXR file") from error
    for key in ("RGB", "RGBA"):
        if key in channels:
            return np.asarray(channels[key])[..., :3]
    for names in (("R", "G", "B"), ("X", "Y", "Z")):
        if all(name in channels for name in names):
            return np.stack([np.asarray(channels[name]) for name in names], axis=-1)
    for name in ("Z", "V", "Y", "R", "DEPTH"):
        if name in channels:
            return np.asarray(channels[name])
    raise BadFrame(f"{path}: channels {sorted(channels)}; expected RGB, XYZ, or one of Z, V, Y, R")
