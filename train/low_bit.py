"""What bitsandbytes adds where it is installed: AdamW with its moments in eight bits, and a base in four."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType

import torch
from torch import nn

from fe2e_core.folding import CONSTANT

_HOW = "pip install bitsandbytes"
_OPTIMIZER = ("[training] optimizer = 'adamw8bit'", "'adamw'")
_BASE = ("[base] dtype = 'nf4'", "'fp8'")


def bitsandbytes(wanted: str, instead: str) -> ModuleType:
    """The library. Raises ValueError saying what needs it, how to get it and what to choose without it."""
    try:
        import bitsandbytes as library
    except Exception as error:  # it fails in many ways where it does not fit the machine
        raise ValueError(
            f"{wanted} needs bitsandbytes, which cannot be imported here ({error}); {_HOW}, or choose {instead}"
        ) from error
    return library


def check_available(optimizer: str, dtype: str) -> None:
    """Raises ValueError now for what would be missing after the base has been read."""
    if optimizer == "adamw8bit":
        bitsandbytes(*_OPTIMIZER)
    if dtype == "nf4":
        bitsandbytes(*_BASE)


def make_optimizer(
    name: str, trained: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """"adamw", or "adamw8bit": its moments take a quarter of the memory. ValueError where that cannot be had.

    trained: by name. Folded constants are never decayed: they are the base's own numbers, not changes of them, and
    nothing says that they should be zero."""
    kind = torch.optim.AdamW
    if name == "adamw8bit":
        kind = bitsandbytes(*_OPTIMIZER).optim.AdamW8bit
    of_base: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for key, parameter in trained:
        of_base[key.endswith("." + CONSTANT)].append(parameter)
    groups = [{"params": found, "weight_decay": 0.0 if base else weight_decay} for base, found in of_base.items() if found]
    return kind(groups, lr=learning_rate)


def store_in_nf4(model: nn.Module, names: Sequence[str]) -> None:
    """Replace the named Linears of a frozen model by four-bit ones, computed in BF16.

    They are quantised when the model is moved to the device that it runs on. peft is told by
    `is_loaded_in_4bit`, and then puts its own layers for them. ValueError where that cannot be had."""
    layers = bitsandbytes(*_BASE).nn
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        linear = getattr(owner, child)
        replacement = layers.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        replacement.weight = layers.Params4bit(
            linear.weight.detach(), requires_grad=False, quant_type="nf4", module=replacement
        )
        if linear.bias is not None:
            replacement.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        setattr(owner, child, replacement)
    model.is_loaded_in_4bit = True
