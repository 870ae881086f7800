"""Bytes of an archive's files -> arrays. What cannot be read becomes a ValueError that names the file."""

from __future__ import annotations

import io

import cv2
import numpy as np


def _decoded(data: bytes, name: str, flags: int) -> np.ndarray:
    # the tag that turns pictures is ignored: the truth lies as the sensor has it
    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
    if array is None:
        raise ValueError(f"{name}: {len(data)} bytes that are no picture; download the archive again")
    return array


def picture(data: bytes, name: str) -> np.ndarray:
    """PNG or JPEG -> (H,W,3) float32 in [0,1], sRGB as stored."""
    array = _decoded(data, name, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return array[..., ::-1].astype(np.float32) / np.iinfo(array.dtype).max


def depth_png(data: bytes, name: str, units: float) -> np.ndarray:
    """16-bit PNG with `units` steps to the metre -> (H,W) float32 metres; 0 where there is no measurement."""
    array = _decoded(data, name, cv2.IMREAD_UNCHANGED)
    if array.ndim != 2 or array.dtype != np.uint16:
        raise ValueError(f"{name}: found {array.dtype} of shape {array.shape}; expected one channel of 16 bits")
    return (array / units).astype(np.float32)


def colours(data: bytes, name: str) -> np.ndarray:
    """8-bit RGB PNG -> (H,W,3) uint8 as stored."""
    array = _decoded(data, name, cv2.IMREAD_COLOR)
    if array.dtype != np.uint8:
        raise ValueError(f"{name}: found {array.dtype}; expected 8 bits a channel")
    return array[..., ::-1]


def npy(data: bytes, name: str) -> np.ndarray:
    """An array of numpy.save, never a pickle."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{name}: {error}; expected an array of numpy.save") from error


def exr_channels(data: bytes, name: str) -> dict[str, np.ndarray]:
    """OpenEXR -> float32 (H,W) of every channel under its full name."""
    try:
        import OpenEXR
    except ImportError:
        raise ValueError(f"{name}: EXR files need the package OpenEXR; run `pip install OpenEXR`") from None
    try:
        with OpenEXR.File(io.BytesIO(data), separate_channels=True) as file:
            return {key: np.array(channel.pixels, dtype=np.float32) for key, channel in file.channels().items()}
    except Exception as error:  # the binding raises bare RuntimeErrors and others
        raise ValueError(f"{name}: {error}; expected an OpenEXR file") from error


def exr_vectors(data: bytes, name: str) -> np.ndarray:
    """OpenEXR with channels R, G, B (or X, Y, Z) -> (H,W,3) float32 in that order."""
    channels = exr_channels(data, name)
    for names in (("R", "G", "B"), ("X", "Y", "Z")):
        if all(key in channels for key in names):
            return np.stack([channels[key] for key in names], axis=-1)
    raise ValueError(f"{name}: channels {sorted(channels)}; expected R, G and B")
