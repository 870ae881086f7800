"""A reader of scan-line EXR files with ZIP compression, written from the format's description, for tests
only."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_TYPES = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
_ZIP, _LINES = 3, 16


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1


def read_exr(data: bytes) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Raw header attributes by name, and every channel."""
    magic, version = struct.unpack_from("<II", data)
    assert magic == 20000630
    assert version & 0xFFFFFF00 & ~0x400 == 0, "one part, scan lines"  # 0x400: long names are allowed
    at = 8
    header: dict[str, bytes] = {}
    while data[at]:
        name, at = _text(data, at)
        _, at = _text(data, at)
        (size,) = struct.unpack_from("<i", data, at)
        header[name] = data[at + 4 : at + 4 + size]
        at += 4 + size
    at += 1
    assert header["compression"][0] == _ZIP
    left, top, right, bottom = struct.unpack("<4i", header["dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    channels, position = [], 0
    while header["channels"][position]:
        name, position = _text(header["channels"], position)
        kind = struct.unpack_from("<i", header["channels"], position)[0]
        channels.append((name, _TYPES[kind]))
        position += 16
    planes = {name: np.empty((height, width), kind) for name, kind in channels}
    count = -(-height // _LINES)
    for offset in struct.unpack_from(f"<{count}Q", data, at):
        y, size = struct.unpack_from("<ii", data, offset)
        y -= top
        lines = min(_LINES, height - y)
        expected = lines * width * sum(kind.itemsize for _, kind in channels)
        block = data[offset + 8 : offset + 8 + size]
        if size < expected:
            block = _unzip(block)
        assert len(block) == expected
        place = 0
        for row in range(y, y + lines):
            for name, kind in channels:
                planes[name][row] = np.frombuffer(block, kind, width, place)
                place += width * kind.itemsize
    return header, planes


def _unzip(block: bytes) -> bytes:
    """Deflate, then undo the byte differences and the split into even and odd bytes."""
    raw = np.frombuffer(zlib.decompress(block), np.uint8).astype(np.int64)
    raw[1:] -= 128
    whole = (np.cumsum(raw) & 255).astype(np.uint8)
    half = (len(whole) + 1) // 2
    out = np.empty_like(whole)
    out[0::2], out[1::2] = whole[:half], whole[half:]
    return out.tobytes()
