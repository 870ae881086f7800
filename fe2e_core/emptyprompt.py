"""The constant conditioning of any base, from the file that holds what its text encoders say of the empty prompt.

An editor with a connector (Step1X-Edit) needs the embeddings that its connector takes: a prompt cache. A generator or
an editor without one (FLUX.1 dev, schnell, Kontext) needs their result: a safetensors file with `context` (1,T,C) and
`pooled` (1,P), which `python -m train empty-prompt` makes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .conditioning import CONNECTOR_PREFIX, Conditioning, constant_conditioning
from .folding import has_guidance
from .promptcache import read_prompt_cache
from .tensorfile import TensorFile, meta

_REMEDY = "make one of the base's own text encoders with `python -m train empty-prompt`"


def read_conditioning(path: str | os.PathLike, transformer: Mapping[str, Tensor], heads: str = "",
                      guidance: float | None = None) -> Conditioning:
    """The constant conditioning for a transformer (its tensors, connector included), float32.

    heads: of the connector, as its file's metadata say, "" for the usual number. guidance: kept when the transformer
    has an input for it. Raises FileNotFoundError, and ValueError for a file that does not belong to this transformer.
    """
    guidance = guidance if has_guidance(transformer) else None
    if any(name.startswith(CONNECTOR_PREFIX) for name in transformer):
        embeds, mask = read_prompt_cache(path)
        made = constant_conditioning(transformer, embeds, mask, int(heads) if heads.isascii() and heads.isdigit() and len(heads) < 6 else None)
        return Conditioning(made.context, made.pooled, guidance)
    name = Path(path).name
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"conditioning: '{name}' is no safetensors file; this transformer has no connector to run a prompt cache "
                         f"through; {_REMEDY}")
    with TensorFile(path, "conditioning") as file:
        missing = [key for key in ("context", "pooled") if key not in file]
        if missing:
            raise ValueError(f"conditioning: '{name}' lacks {missing}; expected context (1,T,C) and pooled (1,P); {_REMEDY}")
        found = Conditioning(file["context"].float(), file["pooled"].float(), guidance)
    widths = (meta(transformer, "txt_in.weight").shape[1], meta(transformer, "vector_in.in_layer.weight").shape[1])
    if (found.context.shape[-1], found.pooled.shape[-1]) != widths:
        raise ValueError(f"conditioning: '{name}' has context {tuple(found.context.shape)} and pooled {tuple(found.pooled.shape)}; "
                         f"this transformer takes (1, tokens, {widths[0]}) and (1, {widths[1]}); {_REMEDY}")
    return found
