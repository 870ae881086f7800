"""Checkpoints of a fine-tuning run: one safetensors file each, whole or not there, the newest few kept.

A file holds the trained tensors, the optimizer's, the dispersive queue, the random states, and as metadata
the step, the sampler's position and the run's identity. Nothing is pickled."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fe2e_core.tensorfile import TensorFile, write_tensors

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})\.safetensors")

Trained = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Position:
    """Where a run stands: finished optimizer steps, the sampler's state, the dispersive queue."""

    step: int
    sampler: dict[str, Any]
    queue: dict[str, Tensor]


def checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))


def save(
    folder: Path,
    position: Position,
    trained: Trained,
    optimizer: torch.optim.Optimizer,
    identity: str,
    keep: int,
) -> bool:
    """Write a checkpoint, then remove all but the newest `keep`. A full disk is logged and survived: returns
    False.
    """
    tensors: dict[str, Tensor] = {f"trained.{name}": p.detach() for name, p in trained}
    for name, parameter in trained:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}|{key}"] = torch.as_tensor(value).detach()
    tensors |= {f"queue.{key}": value for key, value in position.queue.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    metadata = {
        "format": "fe2e-training",
        "step": str(position.step),
        "sampler": json.dumps(position.sampler),
        "identity": identity,
    }
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_tensors(folder / f"step-{position.step:08d}.safetensors", tensors, metadata)
    except OSError as error:
        log.error(
            "step %d: no checkpoint was written (%s); the run goes on, the last one stays",
            position.step,
            error,
        )
        return False
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return True


def restore(
    folder: Path, trained: Trained, optimizer: torch.optim.Optimizer, identity: str
) -> Position | None:
    """Fill parameters and optimizer in place from the newest checkpoint; None when there is none.

    Raises ValueError when it belongs to another run, or does not fit.
    """
    found = checkpoints(folder)
    if not found:
        return None
    with TensorFile(found[-1], "training checkpoint") as file:
        if file.metadata.get("identity") != identity:
            raise ValueError(
                f"'{found[-1]}' belongs to a run with other settings "
                f"({_difference(file.metadata.get('identity', '{}'), identity)}); "
                "restore the configuration, or give the new run another name"
            )
        names = {name for name, _ in trained}
        stored = {key.removeprefix("trained.") for key in file if key.startswith("trained.")}
        if stored != names:
            raise ValueError(
                f"'{found[-1]}' holds {len(stored)} trained tensors, this run trains {len(names)}; use the "
                "same base"
            )
        state: dict[str, dict[str, Tensor]] = {}
        for key in file:
            if key.startswith("optimizer."):
                name, _, entry = key.removeprefix("optimizer.").rpartition("|")
                state.setdefault(name, {})[entry] = file[key]
        for name, parameter in trained:
            parameter.data.copy_(file[f"trained.{name}"])
            if name in state:
                # Adam counts its steps on the CPU
                optimizer.state[parameter] = {
                    k: v.clone() if v.ndim == 0 else v.to(parameter.device, copy=True)
                    for k, v in state[name].items()
                }
        torch.set_rng_state(file["random.cpu"].clone())
        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                if f"random.cuda.{i}" in file:
                    torch.cuda.set_rng_state(file[f"random.cuda.{i}"].clone(), i)
        queue = {key.removeprefix("queue."): file[key].clone() for key in file if key.startswith("queue.")}
        return Position(int(file.metadata["step"]), json.loads(file.metadata["sampler"]), queue)


def _difference(stored: str, now: str) -> str:
    """The settings that differ, in a few words."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in values.items():
            result |= (
                flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
            )
        return result

    before, after = flat(json.loads(stored)), flat(json.loads(now))
    keys = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    return (
        ", ".join(f"{key} was {before.get(key)!r} and is {after.get(key)!r}" for key in keys[:4]) or "unknown"
    )
