"""LoRAs: matching them to a transformer and merging them into its weights.

The release's LoRA (kohya's format) covers every Linear of every block, modulation included: 304 modules of
rank 64, alpha 32. LoRAs of diffusers and peft are read as well (`lora_keys`): their parts of a fused
projection become one block-diagonal LoRA."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .keymaps import SWAPPED, swap_halves
from .lora_keys import AdapterScales, Place, places, split_key
from .quantized import QuantizedWeight, StoredAs, rows_at_a_time, stored_as
from .tensorfile import fresh, meta

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraModule:
    """One module's change: weight += strength * (alpha / rank) * up @ down, bias += strength * diff_b.

    down (rank, in), up (out, rank): both None when only the bias changes. diff_b (out,) or None.
    """

    down: Tensor | None
    up: Tensor | None
    alpha: float
    diff_b: Tensor | None = None

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 0.0 if self.down is None else self.alpha / self.down.shape[0]

    def delta(self, strength: float = 1.0) -> Tensor:
        """The change of the weight, (out, in) float32. Raises ValueError when only the bias changes."""
        if self.down is None or self.up is None:
            raise ValueError("LoRA: this module changes a bias only; it has no change of the weight")
        return (strength * self.scale) * (self.up.float() @ self.down.float())


_Parts = dict[str, Tensor]
_BLOCK_NUMBER = re.compile(r"_blocks\.\d+\.")


def match_lora(
    tensors: Mapping[str, Tensor],
    base_names: Iterable[str],
    name: str = "LoRA",
    metadata: Mapping[str, str] | None = None,
) -> dict[str, LoraModule]:
    """Find the module of the transformer that each part of a LoRA belongs to.

    tensors: the LoRA file. base_names: tensor names of the transformer (public FLUX names). name: the file's
    name, for messages. metadata: the file's metadata, where diffusers keeps alpha; taken from
    `tensors.metadata` when not given. Returns FLUX module name -> LoraModule. Raises ValueError when a key
    belongs to no module of this transformer, when a module's down/up pair is incomplete, or when the file
    holds no LoRA at all: a LoRA that fits in part is a LoRA of another model."""
    if metadata is None:
        metadata = getattr(tensors, "metadata", None)
    scales = AdapterScales(metadata, name)
    modules = {n.rpartition(".")[0] for n in base_names if n.endswith((".weight", ".constant"))}
    known = places(modules)
    found: dict[str, dict[Place, _Parts]] = {}
    unknown: list[str] = []
    for key in tensors:
        split = split_key(key)
        place = known.get(split[0]) if split else None
        if place is None:
            unknown.append(key)
        else:
            found.setdefault(place.module, {}).setdefault(place, {})[split[1]] = tensors[key]
    if unknown:
        raise ValueError(
            f"LoRA: {len(unknown)} of {len(tensors)} keys of '{name}' belong to no layer of this "
            "transformer, "
            f"first {unknown[:3]}; expected kohya keys such as "
            "'lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight', "
            "or those of diffusers and peft, for the same base. Use the LoRA that was trained for this base "
            "(FE2E: LDRN.safetensors)"
        )
    if not found:
        raise ValueError(f"LoRA: '{name}' holds no tensors; download it again")
    result: dict[str, LoraModule] = {}
    for module, layers in found.items():
        whole = [_layer(parts, place, scales, name) for place, parts in layers.items() if place.parts == 1]
        split_up = {
            place.part: _layer(parts, place, scales, name)
            for place, parts in layers.items()
            if place.parts > 1
        }
        if len(whole) + bool(split_up) > 1:
            raise ValueError(
                f"LoRA: '{name}' changes '{module}' under two names, {sorted(p.layer for p in layers)}; "
                "expected one"
            )
        if split_up:
            parts = next(place.parts for place in layers if place.parts > 1)
            result[module] = _fuse(module, split_up, parts, name)
        else:
            # only diffusers' name for this layer means diffusers' order of its rows
            own = module == SWAPPED and next(iter(layers)).layer != module
            result[module] = _swapped(whole[0]) if own else whole[0]
    absent = _absent_from_some_blocks(set(result), modules)
    if absent:
        logger.warning("LoRA '%s' changes %d layers of this transformer and leaves out %d that it changes in other blocks, first %s: "
                       "if it was trained on all blocks, the file is incomplete; download it again",
                       name, len(result), len(absent), absent[:3])
    return result


def _absent_from_some_blocks(changed: set[str], modules: Iterable[str]) -> list[str]:
    """Modules that a LoRA does not change though it changes the same layer of other blocks: signs of a partial file."""
    kinds = {_BLOCK_NUMBER.sub("_blocks.*.", module) for module in changed}
    return sorted(m for m in modules if m not in changed and "_blocks." in m and _BLOCK_NUMBER.sub("_blocks.*.", m) in kinds)


def _layer(parts: _Parts, place: Place, scales: AdapterScales, name: str) -> LoraModule:
    """One layer's tensors as the file has them."""
    down, up = parts.get("down"), parts.get("up")
    missing = [kind for kind, tensor in (("down (lora_A)", down), ("up (lora_B)", up)) if tensor is None]
    alone = len(missing) == 2 and "diff_b" in parts
    if missing and not alone:
        raise ValueError(
            f"LoRA: '{name}' lacks {missing} for '{place.layer}'; the file is incomplete, download it again"
        )
    if alone:
        return LoraModule(None, None, 0.0, parts["diff_b"])
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise ValueError(
            f"LoRA: '{name}' has down {tuple(down.shape)} and up {tuple(up.shape)} for '{place.layer}'; "
            "expected (rank, in) and (out, rank)"
        )
    rank = down.shape[0]
    told = scales.alpha(place.layer, rank)
    # kohya's rule and diffusers': without an alpha the scale is one.
    alpha = float(parts["alpha"]) if "alpha" in parts else float(rank) if told is None else told
    diff_b = parts.get("diff_b")
    if "up_bias" in parts:
        change = parts["up_bias"].float() * (alpha / rank)
        diff_b = change if diff_b is None else diff_b + change
    if diff_b is not None and diff_b.shape != up.shape[:1]:
        raise ValueError(
            f"LoRA: '{name}' has a change of the bias of shape {tuple(diff_b.shape)} for '{place.layer}'; "
            f"expected {tuple(up.shape[:1])}"
        )
    return LoraModule(down, up, alpha, diff_b)


def _fuse(module: str, layers: Mapping[int, LoraModule], parts: int, name: str) -> LoraModule:
    """One LoRA over a fused projection from LoRAs of its parts; parts that are not there stay unchanged.

    The parts' factors lie block-diagonally: rank is the sum of their ranks, and `up` carries their scales.
    When all parts share one `down` (a fused LoRA that was split), the fused LoRA is put together again as it
    was."""
    if any(layer.down is None or layer.up is None for layer in layers.values()):
        raise ValueError(
            f"LoRA: '{name}' changes only biases of parts of '{module}'; expected both factors, or "
            "`.diff_b` of the "
            "whole projection under its kohya name"
        )
    width = next(iter(layers.values())).down.shape[1]
    # FLUX: q, k and v are as wide as the input, the feed-forward part of linear1 four times as wide
    rows = [layers[i].up.shape[0] if i in layers else width * (4 if i == 3 else 1) for i in range(parts)]
    diff_b = None
    if any(layer.diff_b is not None for layer in layers.values()):
        diff_b = torch.cat(
            [
                layers[i].diff_b if i in layers and layers[i].diff_b is not None else torch.zeros(rows[i])
                for i in range(parts)
            ]
        )
    first = layers[min(layers)]
    if len(layers) == parts and all(
        layer.alpha == first.alpha
        and layer.down.shape == first.down.shape
        and torch.equal(layer.down, first.down)
        for layer in layers.values()
    ):
        return LoraModule(first.down, torch.cat([layers[i].up for i in range(parts)]), first.alpha, diff_b)
    ranks = [layers[i].down.shape[0] if i in layers else 0 for i in range(parts)]
    dtype = next(iter(layers.values())).up.dtype
    if any(layer.up.dtype != dtype or math.frexp(layer.scale)[0] != 0.5 for layer in layers.values()):
        dtype = torch.float32  # a power of two changes no digit, any other scale would be rounded
    up = torch.zeros(sum(rows), sum(ranks), dtype=dtype)
    row = column = 0
    for i in range(parts):
        if i in layers:
            up[row : row + rows[i], column : column + ranks[i]] = layers[i].up.float() * layers[i].scale
        row, column = row + rows[i], column + ranks[i]
    down = torch.cat([layers[i].down.to(dtype) for i in range(parts) if i in layers])
    return LoraModule(down, up, float(sum(ranks)), diff_b)


def _swapped(module: LoraModule) -> LoraModule:
    return LoraModule(
        module.down,
        None if module.up is None else swap_halves(module.up),
        module.alpha,
        None if module.diff_b is None else swap_halves(module.diff_b),
    )


def merge(weight: Tensor, module: LoraModule, strength: float = 1.0, in_place: bool = False) -> Tensor:
    """weight (out, in) plus the LoRA's change, added in float32 and rounded once to the weight's dtype.

    in_place: into `weight` itself. Raises ValueError when the shapes do not fit.
    """
    if module.down is None:
        return weight
    expected = (module.up.shape[0], module.down.shape[1])
    if tuple(weight.shape) != expected:
        raise ValueError(
            f"LoRA: its change has shape {expected}, the layer {tuple(weight.shape)}; it was trained for "
            "another base"
        )
    factor, down = strength * module.scale, module.down.to(weight.device).float()
    merged = weight if in_place else torch.empty_like(weight)
    # Some rows at a time: a float32 copy of the largest layer and another of its change would be half a gigabyte.
    size = rows_at_a_time(weight)
    for rows, old, up in zip(merged.split(size), weight.split(size), module.up.split(size), strict=True):
        rows.copy_(old.float() + factor * (up.to(weight.device).float() @ down))
    return merged


def merge_bias(bias: Tensor, module: LoraModule, strength: float = 1.0) -> Tensor:
    """bias (out,) plus the LoRA's `diff_b`, added in float32 and rounded once. Raises ValueError when shapes
    differ.
    """
    if module.diff_b is None:
        return bias
    if module.diff_b.shape != bias.shape:
        raise ValueError(
            f"LoRA: its change of a bias has shape {tuple(module.diff_b.shape)}, the layer "
            f"{tuple(bias.shape)}; "
            "it was trained for another base"
        )
    return (bias.float() + strength * module.diff_b.to(bias.device).float()).to(bias.dtype)


def merge_constant(constant: Tensor, module: LoraModule, silu_vec: Tensor, strength: float = 1.0) -> Tensor:
    """A folded constant (out,) plus what the LoRA adds to it: strength * (alpha/rank * up @ (down @
    silu(vec)) + diff_b).

    Raises ValueError when the shapes do not fit.
    """
    result = merge_bias(constant.float(), module, strength)
    if module.down is None:
        return result.to(constant.dtype)
    expected = (module.up.shape[0], module.down.shape[1])
    if (constant.shape[0], silu_vec.shape[-1]) != expected:
        raise ValueError(
            f"LoRA: its change has shape {expected}, the folded layer "
            f"{(constant.shape[0], silu_vec.shape[-1])}; "
            "it was trained for another base"
        )
    change = module.up.float() @ (module.down.float() @ silu_vec.float().reshape(-1).to(module.down.device))
    return (result + strength * module.scale * change.to(constant.device)).to(constant.dtype)


class Merged(Mapping[str, Tensor]):
    """A transformer's tensors with a LoRA merged into each one as it is read.

    tensors: public FLUX names. modules: from `match_lora`. silu_vec (1, hidden): needed when the transformer
    is folded and the LoRA changes modulation layers; reading such a constant without it raises ValueError.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        modules: Mapping[str, LoraModule],
        strength: float = 1.0,
        silu_vec: Tensor | None = None,
    ):
        self._tensors = tensors
        self._modules = modules
        self._strength = strength
        self._silu_vec = silu_vec

    def __getitem__(self, key: str) -> Tensor:
        module, _, kind = key.rpartition(".")
        tensor = self._tensors[key]
        if module not in self._modules or not self._strength:
            return tensor
        lora = self._modules[module]
        if kind == "weight":
            # A tensor read from a file is ours alone: a second one beside it would tear holes into the memory.
            return merge(tensor, lora, self._strength, in_place=fresh(self._tensors))
        if kind == "bias":
            return merge_bias(tensor, lora, self._strength)
        if kind == "constant":
            if self._silu_vec is None and lora.down is not None:
                raise ValueError(
                    f"LoRA: it changes '{module}', which is folded here, and silu(vec) was not kept; load "
                    "the "
                    "unfolded transformer, or a packed FE2E checkpoint"
                )
            return merge_constant(
                tensor, lora, tensor if self._silu_vec is None else self._silu_vec, self._strength
            )
        return tensor

    def meta(self, key: str) -> Tensor:
        return meta(self._tensors, key)

    def stored_as(self, module: str) -> StoredAs | None:
        """How a layer's weight lies in its file; not intact when the LoRA changes it."""
        stored = stored_as(self._tensors, module)
        lora = self._modules.get(module) if self._strength else None
        return stored if stored is None or lora is None or lora.down is None else replace(stored, intact=False)

    def quantized(self, module: str) -> QuantizedWeight | None:
        """A layer's weight as stored, without the LoRA: ask `stored_as` whether it is intact."""
        return None if self.stored_as(module) is None else self._tensors.quantized(module)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
