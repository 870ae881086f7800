"""NumPy's `.npz` and `.npy` files, without pickle and without believing their headers.

NumPy's own reader makes room for the shape that an array's header claims before it looks for the data: a file of a
hundred bytes can ask for a terabyte. Here the claim is compared with the file's size first, and only data that is
really there takes up memory.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO

import numpy as np
from numpy.lib import format as npy

#: What the standard library and NumPy raise for archives and headers that are broken.
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError,
           SyntaxError, tokenize.TokenError, TypeError, KeyError, ValueError, OverflowError)  # fmt: skip
_PIECE = 2**24
#: Bytes. NumPy itself writes fewer than 200 for plain numbers, and reads no more than 10,000.
_LONGEST_HEADER = 2**16


def read_npz_arrays(path: str | os.PathLike, names: Iterable[str], largest: int = 2**36) -> dict[str, np.ndarray]:
    """Those of the named arrays that a `.npz` archive holds: numbers or bools, any shape.

    largest: bytes that an array may have. Raises ValueError, which does not name the file, for anything that is not a
    whole archive of such arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            found = {}
            for name in names:
                if f"{name}.npy" in there:
                    entry = archive.getinfo(f"{name}.npy")
                    with archive.open(entry) as stream:
                        found[name] = _read(stream, min(entry.file_size, largest), f"'{name}'")
            return found
    except _BROKEN as error:
        raise ValueError(_reason(error)) from error


def read_npy_array(path: str | os.PathLike) -> np.ndarray:
    """The numbers or bools of a `.npy` file. Raises ValueError, which does not name the file, for anything else."""
    try:
        with open(path, "rb") as stream:
            return _read(stream, os.path.getsize(path), "the array")
    except _BROKEN as error:
        raise ValueError(_reason(error)) from error


def _read(stream: IO[bytes], most: int, what: str) -> np.ndarray:
    """The array at the beginning of a stream whose data is at most `most` bytes."""
    shape, fortran, dtype = _read_header(stream)
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {what} as {dtype}; expected plain numbers, others could only be read by pickle")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > most:
        raise ValueError(f"it says {what} is {shape} of {dtype}, more than the {most} bytes there are for it")
    # In pieces, because an archive's own note of the size may lie as well.
    data = bytearray()
    while len(data) < size and (piece := stream.read(min(_PIECE, size - len(data)))):
        data += piece
    if len(data) != size:
        raise ValueError(f"it ends in the middle of {what}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    if npy.read_magic(stream) == (1, 0):
        return npy.read_array_header_1_0(stream)
    # from version 2 on a header may claim 4 GB, and NumPy would make room for it
    length = stream.read(4)
    if (claimed := int.from_bytes(length, "little")) > _LONGEST_HEADER:
        raise ValueError(f"it says that its header has {claimed} bytes; plain numbers need a few hundred")
    return npy.read_array_header_2_0(io.BytesIO(length + stream.read(claimed)))


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
