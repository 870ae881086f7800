"""A tree of tiny models under the names of the released ones.

Same key names, same formats, small sizes: what loads these loads the real files. The weights are those of the
golden rule (tests/harness/golden.py), so every result is a noise picture, but the same one everywhere.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from tests.harness.golden import GoldenConfig, dit_weights, lora_weights, vae_weights
from tests.harness.sd15 import write_sd15

#: Like the golden network, with a context as wide as one attention head of the released connector.
TINY = GoldenConfig(ctx=128, ctx_heads=1)

TRANSFORMER = "step1x-edit-i1258.safetensors"
LORA = "LDRN.safetensors"
VAE = "vae.safetensors"
PROMPT_CACHE = "no_info.npz"


def write_prompt_cache(path: Path, config: GoldenConfig = TINY) -> None:
    """The empty-prompt cache: `embeds` (T, llm) float32 and `masks` (T,) int64, an .npz without pickles."""
    rs = np.random.RandomState(config.seed)
    embeds = rs.standard_normal((config.tokens, config.llm)).astype(np.float32)
    embeds[config.valid :] = embeds[-1]  # padding repeats itself in the release as well
    masks = (np.arange(config.tokens) < config.valid).astype(np.int64)
    np.savez(path, embeds=embeds, masks=masks)


def write_fe2e_parts(models: Path, config: GoldenConfig = TINY) -> None:
    """Transformer with connector, LoRA, VAE (under both of its names) and prompt cache, below `models`."""
    for folder in ("diffusion_models", "loras", "vae", "fe2e"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    save_file(dit_weights(config), models / "diffusion_models" / TRANSFORMER)
    save_file(lora_weights(dataclasses.replace(config, lora=True)), models / "loras" / LORA)
    vae = {name: tensor.float() for name, tensor in vae_weights(config).items()}
    save_file(vae, models / "vae" / VAE)
    save_file(vae, models / "vae" / "ae.safetensors")
    write_prompt_cache(models / "fe2e" / PROMPT_CACHE, config)


def write_models(models: Path) -> Path:
    """Everything the example workflows name. Returns `models`."""
    write_fe2e_parts(models)
    write_sd15(models)
    return models
