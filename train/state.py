"""Saving and resuming a training run: safetensors, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_state(
    file: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    average: dict[str, Tensor] | None = None,
) -> None:
    """Write the model, its optimizers' state, the weights' moving average if given, and the finished steps."""
    tensors = {f"model.{k}": v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().clone().contiguous()
    tensors |= {f"average.{k}": v.clone().contiguous() for k, v in (average or {}).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    save_file(tensors, temporary, metadata={"step": str(step)})
    os.replace(temporary, file)


def load_state(
    file: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor] | None = None,
) -> int:
    """Fill model, optimizers and average in place from `file`; returns the finished steps, 0 if there is no file."""
    if not file.exists():
        return 0
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        step = int((opened.metadata() or {})["step"])

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("model."))
    moments = part("optimizer.")
    for optimizer in optimizers:
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            if id(parameter) in owned:
                found = {k.removesuffix("." + name): v for k, v in moments.items() if k.endswith("." + name)}
                found = {k: v for k, v in found.items() if "." not in k}
                if found:
                    optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in found.items()}
    if average is not None:
        average.update(part("average."))
    return step
