"""Tensor names: public FLUX <-> diffusers, and the FLUX autoencoder <-> diffusers' AutoencoderKL.

Checkpoints, LoRAs and ComfyUI speak the public FLUX names; diffusers splits the fused projections. The maps
are by module, so that weights, biases, folded constants and LoRA factors all go through the same table. They
read no sizes: any width and depth works (diffusers' own single-file conversion is fixed at width 3072).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# FLUX module -> diffusers modules that share its output rows, in order.
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
#: diffusers keeps (scale, shift) where FLUX keeps (shift, scale).
SWAPPED = "final_layer.adaLN_modulation.1"

_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def diffusers_modules(module: str) -> tuple[str, ...]:
    """diffusers' modules for a FLUX module, in the order of its output rows. Raises KeyError when unknown."""
    if module in _TOP:
        return (_TOP[module],)
    match = _BLOCK.fullmatch(module)
    if match is None:
        raise KeyError(module)
    kind, index, rest = match.groups()
    table, prefix = (_DOUBLE, "transformer_blocks") if kind == "double" else (_SINGLE, "single_transformer_blocks")
    return tuple(f"{prefix}.{index}.{name}" for name in table[rest])


def linear_modules(double: int, single: int) -> list[str]:
    """FLUX names of every Linear of a transformer with this many double and single blocks, guidance left out."""
    in_double = [name for name in _DOUBLE if ".norm." not in name]
    in_single = [name for name in _SINGLE if not name.startswith("norm.")]
    modules = [module for module in _TOP if not module.startswith("guidance_in")]
    modules += [f"double_blocks.{i}.{name}" for i in range(double) for name in in_double]
    return modules + [f"single_blocks.{i}.{name}" for i in range(single) for name in in_single]


def row_split(module: str, rows: int, width: int) -> list[int]:
    """Rows of each part of a fused FLUX module: equal thirds for qkv, three widths and the rest for linear1."""
    parts = len(diffusers_modules(module))
    if parts == 4:
        return [width, width, width, rows - 3 * width]
    return [rows // parts] * parts


def swap_halves(tensor: Tensor) -> Tensor:
    """(2n, ...) with its first and second n rows exchanged."""
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first])


def flux_to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public FLUX names -> diffusers FluxTransformer2DModel names. Keys under `connector.` are left out.

    Raises ValueError naming the first keys it does not know.
    """
    width = weights["img_in.weight"].shape[0]
    result: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in weights.items():
        if key.startswith("connector."):
            continue
        module, _, kind = key.rpartition(".")
        try:
            targets = diffusers_modules(module)
        except KeyError:
            unknown.append(key)
            continue
        if module == SWAPPED:
            tensor = swap_halves(tensor)
        kind = "weight" if kind == "scale" else kind
        for target, part in zip(targets, tensor.split(row_split(module, tensor.shape[0], width)), strict=True):
            result[f"{target}.{kind}"] = part.contiguous()
    if unknown:
        raise ValueError(f"transformer: {len(unknown)} tensors have no place in a FLUX transformer, first {unknown[:3]}; "
                         "expected the public FLUX names")
    return result


def diffusers_to_flux(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `flux_to_diffusers`. Raises ValueError naming the first keys it does not know."""
    count = {kind: 1 + max((int(k.split(".")[1]) for k in weights if k.startswith(prefix + ".")), default=-1)
             for kind, prefix in (("double", "transformer_blocks"), ("single", "single_transformer_blocks"))}
    modules = list(_TOP)
    modules += [f"double_blocks.{i}.{name}" for i in range(count["double"]) for name in _DOUBLE]
    modules += [f"single_blocks.{i}.{name}" for i in range(count["single"]) for name in _SINGLE]
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    for module in modules:
        sources = diffusers_modules(module)
        for kind in ("weight", "bias", "constant"):
            keys = [f"{source}.{kind}" for source in sources]
            if not all(key in weights for key in keys):
                continue
            used.update(keys)
            tensor = torch.cat([weights[key] for key in keys]) if len(keys) > 1 else weights[keys[0]]
            if module == SWAPPED:
                tensor = swap_halves(tensor)
            is_norm = kind == "weight" and tensor.ndim == 1
            result[f"{module}.{'scale' if is_norm else kind}"] = tensor
    unknown = [key for key in weights if key not in used]
    if unknown:
        raise ValueError(f"transformer: {len(unknown)} tensors have no place in a FLUX transformer, first {unknown[:3]}; "
                         "expected the names of diffusers' FluxTransformer2DModel")
    return result


_AE_RULES = (
    (r"(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out\.", r"\1.mid_block.attentions.0.to_out.0."),
    (r"(encoder|decoder)\.mid\.attn_1\.([qkv])\.", r"\1.mid_block.attentions.0.to_\2."),
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
)


def _ae_name(name: str, levels: int) -> str:
    """diffusers name of an autoencoder tensor; the decoder's levels are counted from the other end there."""
    match = re.match(r"decoder\.up\.(\d+)\.(block|upsample)\.(.*)", name)
    if match:
        level, kind, rest = levels - 1 - int(match[1]), match[2], match[3]
        name = f"decoder.up_blocks.{level}.{'resnets' if kind == 'block' else 'upsamplers.0'}.{rest}"
    for pattern, replacement in _AE_RULES:
        name = re.sub(pattern, replacement, name)
    return name


def vae_to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FLUX autoencoder names -> diffusers AutoencoderKL names; 1x1 attention convolutions become Linears."""
    levels = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("decoder.up."))
    return {_ae_name(key, levels): tensor[..., 0, 0] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) else tensor
            for key, tensor in weights.items()}


def vae_from_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers AutoencoderKL names -> FLUX autoencoder names."""
    levels = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("decoder.up_blocks."))
    result: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = key
        match = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.*)", name)
        if match:
            name = f"decoder.up.{levels - 1 - int(match[1])}.{'block' if match[2] == 'resnets' else 'upsample'}.{match[3]}"
        for pattern, replacement in (
            (r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
            (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
            (r"mid_block\.resnets\.0\.", "mid.block_1."),
            (r"mid_block\.resnets\.1\.", "mid.block_2."),
            (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
            (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
            (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
            (r"conv_norm_out\.", "norm_out."),
            (r"\.conv_shortcut\.", ".nin_shortcut."),
        ):
            name = re.sub(pattern, replacement, name)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            tensor = tensor[..., None, None]
        result[name] = tensor
    return result
