"""PNG files with 16 bits a channel (ISO/IEC 15948), which Pillow writes for grey pictures only."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from torch import Tensor

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


def encode_png16(values: Tensor, *, scale: float = 65535.0, text: dict[str, str] | None = None) -> bytes:
    """(H,W) grey or (H,W,3) colour values -> the bytes of a 16-bit PNG holding round(value * scale).

    With the default scale 0 is black and 1 is white. Values beyond the ends are clamped, NaN becomes 0.
    `text` are keyword and Latin-1 text pairs for the file's information chunks. Raises ValueError for another
    shape.
    """
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] != 3) or values.numel() == 0:
        raise ValueError(f"image: found shape {tuple(values.shape)}, expected (H,W) or (H,W,3) with pixels")
    clean = torch.nan_to_num(values.detach().cpu().to(torch.float64), nan=0.0, posinf=np.inf, neginf=0.0)
    samples = (clean * scale).round().clamp(0, 65535).numpy().astype(np.uint16)
    height, width = samples.shape[:2]
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    # filter 2, the difference to the row above, byte by byte: smooth depth compresses to about half of the
    # raw size
    filtered = np.empty((height, rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    head = struct.pack(">IIBBBBB", width, height, 16, _RGB if samples.ndim == 3 else _GREY, 0, 0, 0)
    chunks = [_chunk(b"IHDR", head)]
    for keyword, content in (text or {}).items():
        chunks.append(
            _chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + content.encode("latin-1", "replace"))
        )
    chunks += [_chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)), _chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
