"""The empty-prompt cache: what the editor's language model says of an empty instruction.

The release ships it as `latent/no_info.npz` with `embeds` (640, 3584) and `masks` (640,). It is read without
pickle, and its headers are checked against the sizes on disk before anything is allocated.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .npyfiles import read_npz_arrays
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
    try:
        arrays = read_npz_arrays(path, ("embeds", "masks"), _LARGEST_ARRAY)
    except ValueError as error:
        raise ValueError(f"prompt cache: '{path.name}' is not a readable .npz archive ({error}); {REMEDY}") from error
    for name in ("embeds", "masks"):
        _require(name in arrays, path, f"has no array '{name}'")
    return torch.from_numpy(arrays["embeds"].astype(np.float32)), torch.from_numpy(arrays["masks"].astype(np.int64))
