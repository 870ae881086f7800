"""peft's LoRA on every Linear of every block, and its way back to FLUX names."""

from __future__ import annotations

import json
import math

import torch
from torch import nn

from fe2e_core.folding import CONSTANT, Constant
from fe2e_core.keymaps import diffusers_modules, diffusers_to_flux
from fe2e_core.lora import LoraModule, match_lora
from fe2e_core.lora_keys import ADAPTER_METADATA
from train.bases import Base, block_linears
from train.lora_export import constant_changes
from train.recipe import LoraShape


def attach(base: Base, shape: LoraShape, seed: int) -> list[tuple[str, nn.Parameter]]:
    """Put a fresh LoRA on the base's transformer; returns what is trained, by name, all of it float32.

    The factors depend on the seed alone: `lora_A` uniform as peft draws it, `lora_B` zero.
    """
    from peft import LoraConfig

    model = base.transformer
    config = LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=block_linears(model))
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(config)
    for name, module in model.named_modules():
        if shape.constants and isinstance(module, Constant) and "transformer_blocks." in name:
            module.constant.requires_grad_(True)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in trained:
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            # drawn again: peft rounds its factors to the dtype of the frozen layer, which may be float8
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    return trained


def trained_modules(base: Base, shape: LoraShape) -> dict[str, LoraModule]:
    """What training made of the base, by FLUX module: LoRAs, and changes of folded constants as `diff_b`."""
    tensors = {k: p.detach().float().cpu() for k, p in base.transformer.named_parameters() if ".lora_" in k}
    scales = {ADAPTER_METADATA: json.dumps({"r": shape.rank, "lora_alpha": shape.alpha})}
    modules = match_lora(tensors, base.names, "trained LoRA", scales)
    after = {}
    for name in base.constants:
        module = name.removesuffix("." + CONSTANT)
        parameter = base.transformer.get_submodule(diffusers_modules(module)[0]).constant
        after |= diffusers_to_flux(
            {f"{diffusers_modules(module)[0]}.{CONSTANT}": parameter.detach().float().cpu()}
        )
    return modules | constant_changes(base.constants, after)
