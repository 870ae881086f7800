"""The empty-prompt cache: what the editor's language model says of an empty instruction.

The release ships it as `latent/no_info.npz` with `embeds` (640, 3584) and `masks` (640,). It is read without
pickle, and its headers are checked against the sizes on disk before anything is allocated.
"""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from .tensorfile import TensorFile

_LARGEST_ARRAY = 256 * 2**20
#: How to get the file, for the error a user sees without it.
REMEDY = ("get 'latent/no_info.npz' from the repository github.com/AMAP-ML/FE2E "
          "(https://github.com/AMAP-ML/FE2E/raw/262d4c9d4c37752c984304f57ca7d7066f34ad5d/latent/no_info.npz) and put it into the "
          "folder models/fe2e; or, in the pack's folder, run `python -m train fetch --models-dir <ComfyUI>/models --what "
          "prompt-cache`; or use a packed FE2E checkpoint, which needs none")


def read_prompt_cache(path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    """(embeds (T, width) float32, mask (T,) int64, 1 where a token is real) from a `.npz` or `.safetensors` file.

    Raises FileNotFoundError when there is none, and ValueError for a file that is no such archive, holds pickled
    objects, misshapen or non-finite arrays, or a mask with no real token.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"prompt cache: there is no file '{path}'; {REMEDY}")
    if path.suffix == ".safetensors":
        with TensorFile(path, "prompt cache") as file:
            _require({"embeds", "masks"} <= set(file), path, "has no tensors 'embeds' and 'masks'")
            embeds, mask = file["embeds"], file["masks"]
    else:
        embeds, mask = _read_npz(path)
    _require(embeds.ndim == 2 and mask.ndim == 1 and embeds.shape[0] == mask.shape[0] and min(embeds.shape) > 0, path,
             f"has embeds {tuple(embeds.shape)} and masks {tuple(mask.shape)}; expected (tokens, width) and (tokens,)")
    _require(embeds.is_floating_point() and bool(embeds.isfinite().all()), path, "holds embeddings that are not finite numbers")
    mask = mask.to(torch.int64)
    _require(bool(((mask == 0) | (mask == 1)).all()) and bool(mask.any()), path, "has a mask that is not of zeros and ones with a one")
    return embeds.float(), mask


def _require(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise ValueError(f"prompt cache: '{path.name}' {problem}; {REMEDY}")


def _read_npz(path: Path) -> tuple[Tensor, Tensor]:
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("embeds", "masks"):
                _require(f"{name}.npy" in archive.namelist(), path, f"has no array '{name}'")
                entry = archive.getinfo(f"{name}.npy")
                _require(entry.file_size <= _LARGEST_ARRAY, path, f"says '{name}' has {entry.file_size} bytes")
                with archive.open(entry) as stream:
                    version = npy.read_magic(stream)
                    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, fortran, dtype = read_header(stream)
                    _require(dtype.kind in "fiub", path, f"holds '{name}' as {dtype}, which only pickle could read")
                    size = math.prod(shape) * dtype.itemsize
                    _require(size <= entry.file_size, path, f"says '{name}' is {shape}, more than the file holds")
                    data = stream.read(size)
                    _require(len(data) == size, path, f"ends in the middle of '{name}'")
                    arrays[name] = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith("prompt cache:"):
            raise
        raise ValueError(f"prompt cache: '{path.name}' is not a readable .npz archive ({error}); {REMEDY}") from error
    return torch.from_numpy(arrays["embeds"].astype(np.float32)), torch.from_numpy(arrays["masks"].astype(np.int64))
