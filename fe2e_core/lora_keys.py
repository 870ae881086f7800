"""Names of LoRA tensors: kohya's and diffusers'/peft's, both led back to one layer of the transformer.

    kohya        lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight    one LoRA over the fused projection
    diffusers    transformer.transformer_blocks.0.attn.to_q.lora_A.weight   one LoRA for each of its parts
    peft         base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight

Both may change biases: kohya's files (and ComfyUI) as `.diff_b`, the change itself; peft's as `.lora_B.bias`,
which is multiplied by alpha / rank like the rest. Scales are kohya's `.alpha` tensors, or the JSON that
diffusers keeps in the file's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .keymaps import diffusers_modules
from .strict_json import parse_json

KOHYA_PREFIX = "lora_unet_"
DIFFUSERS_PREFIX = "transformer."
PEFT_PREFIX = "base_model.model."
#: Where diffusers writes the adapter's configuration into a LoRA file.
ADAPTER_METADATA = "lora_adapter_metadata"

_SUFFIXES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".diff_b": "diff_b",
    ".alpha": "alpha",
}


class Place(NamedTuple):
    """Where a LoRA's layer belongs: a FLUX module, and which of its `parts` row ranges (0 of 1 when whole).

    layer: the name that the file's format uses for it, without prefix.
    """

    module: str
    part: int
    parts: int
    layer: str


def kohya_name(module: str) -> str:
    """A FLUX module as kohya's files call it."""
    return KOHYA_PREFIX + module.replace(".", "_")


def places(modules: Iterable[str]) -> dict[str, Place]:
    """Every name under which a LoRA may address the given FLUX modules -> its place."""
    found: dict[str, Place] = {}
    for module in modules:
        found[kohya_name(module)] = found["diffusion_model." + module] = Place(module, 0, 1, module)
        try:
            targets = diffusers_modules(module)
        except KeyError:  # the connector: not a part of diffusers' transformer
            continue
        for part, target in enumerate(targets):
            place = Place(module, part, len(targets), target)
            for prefix in (DIFFUSERS_PREFIX, PEFT_PREFIX, PEFT_PREFIX + DIFFUSERS_PREFIX, ""):
                found.setdefault(prefix + target, place)
    return found


def split_key(key: str) -> tuple[str, str] | None:
    """A tensor's name -> (layer name, "down" | "up" | "up_bias" | "diff_b" | "alpha"), or None when it is
    none.
    """
    for suffix, kind in _SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), kind
    return None


class AdapterScales:
    """alpha of each layer as diffusers' metadata gives it: `lora_alpha`, with exceptions in `alpha_pattern`.

    metadata: the file's. Raises ValueError when the JSON in it cannot be read.
    """

    def __init__(self, metadata: Mapping[str, str] | None, name: str):
        text = (metadata or {}).get(ADAPTER_METADATA)
        try:
            raw = parse_json(text) if text else {}
            values = {key.removeprefix(DIFFUSERS_PREFIX): value for key, value in raw.items()}
            alpha = values.get("lora_alpha")
            self._alpha = None if alpha is None else float(alpha)
            self._pattern = {str(k): float(v) for k, v in (values.get("alpha_pattern") or {}).items()}
            self._root = bool(values.get("use_rslora"))
            if not all(map(math.isfinite, (self._alpha or 0.0, *self._pattern.values()))):
                raise ValueError("an alpha that is not finite")
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"LoRA: the metadata '{ADAPTER_METADATA}' of '{name}' cannot be read ({error}); expected "
                "the JSON "
                "that diffusers writes. Save the LoRA again"
            ) from error

    def alpha(self, layer: str, rank: int) -> float | None:
        """alpha such that alpha / rank is the layer's scale; None when the file does not say."""
        found = next(
            (v for k, v in self._pattern.items() if layer == k or layer.endswith("." + k)), self._alpha
        )
        # rank-stabilised LoRA divides by the square root of the rank
        return found if found is None or not self._root else found * rank**0.5
