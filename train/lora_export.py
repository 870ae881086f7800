"""A trained LoRA as a file: kohya's keys (ComfyUI and most tools), diffusers' or peft's, with metadata and
digests.

One LoRA, `fe2e_core.lora.LoraModule` by FLUX module, is what all formats are made from. In diffusers' and
peft's files alpha / rank is multiplied into `lora_B`: readers disagree about where alpha stands there, and
this way none of them can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fe2e_core.folding import CONSTANT, is_modulation
from fe2e_core.keymaps import SWAPPED, diffusers_modules, row_split, swap_halves
from fe2e_core.lora import LoraModule, merge
from fe2e_core.lora_keys import DIFFUSERS_PREFIX, PEFT_PREFIX, kohya_name
from fe2e_core.tensorfile import write_tensors

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"

Modules = Mapping[str, LoraModule]


@dataclass(frozen=True)
class LoraNotes:
    """What a LoRA file says of its making. Digests are hexadecimal SHA-256, empty where unknown.

    base: the base's file name. data: fingerprint of the mixture. height, width: picture size in training,
    pixels. quantization: scheme of the depth labels, which decides how depth is decoded."""

    title: str
    base: str = ""
    base_sha256: str = ""
    data: str = ""
    quantization: str = "log"
    height: int = 0
    width: int = 0
    steps: int = 0
    batch: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    config: str = ""

    def metadata(self, modules: Modules, digest: str) -> dict[str, str]:
        """safetensors metadata: kohya's `ss_`, Stability's `modelspec.` and our own `fe2e.` fields that are
        known.
        """
        ranks = Counter(m.down.shape[0] for m in modules.values() if m.down is not None)
        rank = ranks.most_common(1)[0][0] if ranks else 0
        alphas = Counter(m.alpha for m in modules.values() if m.down is not None and m.down.shape[0] == rank)
        fields: dict[str, object] = {
            "ss_network_module": "networks.lora_flux",
            "ss_network_dim": rank or "",
            "ss_network_alpha": alphas.most_common(1)[0][0] if alphas else "",
            "ss_base_model_version": "flux1",
            "ss_sd_model_name": self.base,
            "ss_new_sd_model_hash": self.base_sha256,
            "ss_output_name": self.title,
            "ss_steps": self.steps or "",
            "ss_max_train_steps": self.steps or "",
            "ss_total_batch_size": self.batch or "",
            "ss_learning_rate": self.learning_rate or "",
            "ss_seed": self.seed if self.steps else "",
            "ss_resolution": f"({self.width}, {self.height})" if self.width else "",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "flux-1-dev/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
            "modelspec.title": self.title,
            "modelspec.resolution": f"{self.width}x{self.height}" if self.width else "",
            "modelspec.hash_sha256": f"0x{digest}",
            "modelspec.description": "FE2E: depth and surface normals of one picture in one pass",
            "fe2e.quantization": self.quantization,
            "fe2e.base_sha256": self.base_sha256,
            "fe2e.data": self.data,
            "fe2e.config": self.config,
        }
        return {key: str(value) for key, value in fields.items() if value != ""}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names: the same for the same LoRA."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_kohya(modules: Modules, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """kohya's tensors. Factors are cast to `dtype` where given; changes of biases stay as they are."""
    tensors: dict[str, Tensor] = {}
    for module in sorted(modules):
        lora, name = modules[module], kohya_name(module)
        if lora.down is not None and lora.up is not None:
            tensors[f"{name}.lora_down.weight"] = lora.down.to(dtype or lora.down.dtype).contiguous()
            tensors[f"{name}.lora_up.weight"] = lora.up.to(dtype or lora.up.dtype).contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(lora.alpha)
        if lora.diff_b is not None:
            tensors[f"{name}.diff_b"] = lora.diff_b.contiguous()
    return tensors


def to_diffusers(
    modules: Modules, dtype: torch.dtype | None = None, prefix: str = DIFFUSERS_PREFIX
) -> dict[str, Tensor]:
    """diffusers' tensors: fused projections in parts, alpha / rank within `lora_B`.

    Changes of biases become `lora_B.bias`, which then every layer has (peft knows it for all or none). Raises
    ValueError for a layer of which only the bias changes, unless it is a modulation layer, whose input width
    is known."""
    biased = any(lora.diff_b is not None for lora in modules.values())
    ranks = Counter(lora.down.shape[0] for lora in modules.values() if lora.down is not None)
    rank = ranks.most_common(1)[0][0] if ranks else 1
    tensors: dict[str, Tensor] = {}
    for module in sorted(modules):
        lora = (
            modules[module]
            if modules[module].down is not None
            else _with_zero_factors(module, modules[module], rank)
        )
        for target, down, up, diff_b in _parts(module, lora):
            exact = down.dtype == up.dtype
            tensors[f"{prefix}{target}.lora_A.weight"] = down.to(
                dtype or (down.dtype if exact else torch.float32)
            ).contiguous()
            tensors[f"{prefix}{target}.lora_B.weight"] = up.to(
                dtype or (up.dtype if exact else torch.float32)
            ).contiguous()
            if biased:
                change = torch.zeros(up.shape[0]) if diff_b is None else diff_b
                tensors[f"{prefix}{target}.lora_B.bias"] = change.to(
                    tensors[f"{prefix}{target}.lora_B.weight"].dtype
                ).contiguous()
    return tensors


def _with_zero_factors(module: str, lora: LoraModule, rank: int) -> LoraModule:
    """A modulation layer of which only the bias changes, with factors that do nothing."""
    chunks = 2 if module == SWAPPED else 3 if module.startswith("single_blocks.") else 6
    if not is_modulation(module):
        raise ValueError(
            f"LoRA: it changes only the bias of '{module}', which diffusers' and peft's files cannot say; "
            "write kohya's format"
        )
    rows = lora.diff_b.shape[0]
    return LoraModule(torch.zeros(rank, rows // chunks), torch.zeros(rows, rank), float(rank), lora.diff_b)


def _parts(module: str, lora: LoraModule) -> list[tuple[str, Tensor, Tensor, Tensor | None]]:
    """(diffusers layer, lora_A, lora_B with its scale, change of the bias) for each part of a FLUX layer."""
    scale = lora.scale
    # a power of two changes no digit; any other scale is kept in float32
    up = lora.up * scale if _is_power_of_two(scale) else lora.up.float() * scale
    down, diff_b = lora.down, lora.diff_b
    if module == SWAPPED:
        up, diff_b = swap_halves(up), None if diff_b is None else swap_halves(diff_b)
    targets = diffusers_modules(module)
    rows = row_split(module, up.shape[0], down.shape[1])
    ups = list(up.split(rows))
    biases = [None] * len(targets) if diff_b is None else list(diff_b.split(rows))
    used = [(part != 0).any(0) for part in ups]
    # a block-diagonal LoRA came from LoRAs of the parts, and becomes them again
    if len(targets) > 1 and bool((torch.stack(used).sum(0) == 1).all()):
        return [
            (target, down[columns], part[:, columns], bias)
            for target, part, columns, bias in zip(targets, ups, used, biases, strict=True)
            if bool(columns.any()) or bias is not None
        ]
    # copies: writers refuse tensors that share their memory
    return [(target, down.clone(), part, bias) for target, part, bias in zip(targets, ups, biases, strict=True)]


def _is_power_of_two(value: float) -> bool:
    mantissa, _ = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return float(mantissa) == 0.5


def write_kohya(
    path: str | os.PathLike, modules: Modules, notes: LoraNotes, dtype: torch.dtype | None = None
) -> None:
    """A kohya file, whole or not at all."""
    tensors = to_kohya(modules, dtype)
    write_tensors(path, tensors, notes.metadata(modules, tensors_digest(tensors)))


def write_peft(
    folder: str | os.PathLike, modules: Modules, notes: LoraNotes, dtype: torch.dtype | None = None
) -> None:
    """A folder for peft's `PeftModel.from_pretrained`: weights, then their configuration, each whole or not
    at all.
    """
    from peft import LoraConfig

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = to_diffusers(modules, dtype, PEFT_PREFIX)
    ranks = {
        key.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight"): tensor.shape[0]
        for key, tensor in tensors.items()
        if key.endswith(".lora_A.weight")
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{layer}$".replace(".", r"\."): value for layer, value in ranks.items() if value != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(ranks),
        rank_pattern=others,
        alpha_pattern=dict(others),
        lora_bias=any(key.endswith(".lora_B.bias") for key in tensors),
        inference_mode=True,
    )
    write_tensors(target / PEFT_WEIGHTS, tensors, notes.metadata(modules, tensors_digest(tensors)))
    about = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }
    temporary = target / f".{PEFT_CONFIG}.part"
    temporary.write_text(json.dumps(about, indent=2, sort_keys=True, default=str), encoding="utf-8")
    os.replace(temporary, target / PEFT_CONFIG)


def constant_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, LoraModule]:
    """What training did to folded constants (public FLUX names), as changes of biases: exact in ComfyUI's
    `.diff_b`.

    The difference is taken in float32. Constants that did not change are left out.
    """
    changes: dict[str, LoraModule] = {}
    for name in before:
        module, _, kind = name.rpartition(".")
        if kind == CONSTANT and is_modulation(module):
            change = after[name].float() - before[name].float()
            if bool(change.any()):
                changes[module] = LoraModule(None, None, 0.0, change)
    return changes


def rank_one(change: Tensor, silu_vec: Tensor) -> LoraModule:
    """The LoRA of rank one that changes a modulation layer's output by `change` (out,) when its input is
    silu(vec).

    silu_vec (1, in). d silu(vec)^T / |silu(vec)|^2, both factors of equal norm. Exact as long as nothing is
    rounded."""
    vector = silu_vec.float().reshape(1, -1)
    length = vector.norm()
    balance = (change.float().norm().clamp_min(1e-30)).sqrt()
    return LoraModule(vector / length * balance, change.float()[:, None] / length / balance, 1.0)


def with_rank_one(modules: Modules, silu_vec: Tensor) -> dict[str, LoraModule]:
    """Changes of modulation layers' biases as rank-one LoRAs, for readers that know no `.diff_b`.

    A layer that also has factors gets one rank more.
    """
    result: dict[str, LoraModule] = {}
    for module, lora in modules.items():
        if lora.diff_b is None or not is_modulation(module):
            result[module] = lora
            continue
        extra = rank_one(lora.diff_b, silu_vec)
        if lora.down is not None:
            down = torch.cat([lora.down.float(), extra.down])
            up = torch.cat([lora.up.float() * lora.scale, extra.up], dim=1)
            extra = LoraModule(down, up, float(down.shape[0]))
        result[module] = extra
    return result


def rank_one_loss(weight: Tensor, change: Tensor, silu_vec: Tensor) -> float:
    """How much of a change is lost when its rank-one LoRA is merged into `weight` (out, in) in the weight's
    dtype: |what the merged layer's output changes by - change| / |change|. 0 is nothing, 1 is everything."""
    vector = silu_vec.float().reshape(-1)
    merged = merge(weight, rank_one(change, silu_vec))
    effect = (merged.float() - weight.float()) @ vector
    return float((effect - change.float()).norm() / change.float().norm().clamp_min(1e-30))
