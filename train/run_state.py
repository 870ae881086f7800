"""Checkpoints of a fine-tuning run: one safetensors file each, whole or not there; the newest few are kept, and
the best.

A file holds the trained tensors, their average, the optimizer's, the dispersive queue, the random states, and
as metadata the step, the sampler's position and the run's identity. Nothing is pickled."""

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
from train.average import WeightAverage

log = logging.getLogger(__name__)

BEST = "best.safetensors"
_NAME = re.compile(r"step-(\d{8})\.safetensors")

Trained = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Position:
    """Where a run stands: finished optimizer steps, the sampler's state, the dispersive queue."""

    step: int
    sampler: dict[str, Any]
    queue: dict[str, Tensor]


@dataclass(frozen=True)
class RunState:
    """What of a run is saved, and where. average: None without one. identity: the settings that must not
    change, as JSON. keep: how many of the newest checkpoints stay."""

    folder: Path
    trained: Trained
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    identity: str
    keep: int

    def save(self, position: Position) -> bool:
        """Write a checkpoint, then remove all but the newest `keep`. A full disk is logged and survived:
        returns False.
        """
        if not self._write(f"step-{position.step:08d}.safetensors", position, {}):
            return False
        for old in checkpoints(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)
        return True

    def save_best(self, position: Position, about: Mapping[str, Any]) -> bool:
        """Write `best.safetensors`, a checkpoint like the others, with what it is the best in."""
        return self._write(BEST, position, {"best": json.dumps(about, sort_keys=True)})

    def read_best(self) -> dict[str, Any] | None:
        """What `save_best` was told when it last wrote; None when it never did, or for another run."""
        path = self.folder / BEST
        if not path.is_file():
            return None
        try:
            with TensorFile(path, "best checkpoint") as file:
                if _same_run(file.metadata.get("identity"), self.identity) and "best" in file.metadata:
                    return json.loads(file.metadata["best"])
        except ValueError as error:
            log.warning("%s; it will be written again", error)
            return None
        log.warning("'%s' is of a run with other settings and will be replaced by this run's best", path)
        return None

    def _write(self, name: str, position: Position, more: Mapping[str, str]) -> bool:
        tensors: dict[str, Tensor] = {f"trained.{key}": p.detach() for key, p in self.trained}
        for key, parameter in self.trained:
            for entry, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}|{entry}"] = torch.as_tensor(value).detach()
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.tensors.items()}
        tensors |= {f"queue.{key}": value for key, value in position.queue.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        metadata = {
            "format": "fe2e-training",
            "step": str(position.step),
            "sampler": json.dumps(position.sampler),
            "identity": self.identity,
            **more,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self.folder / name, tensors, metadata)
        except OSError as error:
            log.error(
                "step %d: no checkpoint was written (%s); the run goes on, the last one stays",
                position.step,
                error,
            )
            return False
        return True

    def restore(self) -> Position | None:
        """Fill parameters, average and optimizer in place from the newest checkpoint; None when there is none.

        Raises ValueError when it belongs to another run, or does not fit.
        """
        found = checkpoints(self.folder)
        if not found:
            return None
        with TensorFile(found[-1], "training checkpoint") as file:
            self._check(file)
            state: dict[str, dict[str, Any]] = {}
            for key in file:
                if key.startswith("optimizer."):
                    name, _, entry = key.removeprefix("optimizer.").rpartition("|")
                    state.setdefault(name, {})[entry] = file[key]
            for name, parameter in self.trained:
                parameter.data.copy_(file[f"trained.{name}"])
                if name in state:
                    self.optimizer.state[parameter] = {
                        key: _restored(value, parameter.device) for key, value in state[name].items()
                    }
            if self.average is not None:
                self.average.load({name: file[f"average.{name}"] for name, _ in self.trained})
            torch.set_rng_state(file["random.cpu"].clone())
            if torch.cuda.is_available():
                for i in range(torch.cuda.device_count()):
                    if f"random.cuda.{i}" in file:
                        torch.cuda.set_rng_state(file[f"random.cuda.{i}"].clone(), i)
            queue = {
                key.removeprefix("queue."): file[key].clone() for key in file if key.startswith("queue.")
            }
            return Position(int(file.metadata["step"]), json.loads(file.metadata["sampler"]), queue)

    def _check(self, file: TensorFile) -> None:
        if not _same_run(file.metadata.get("identity"), self.identity):
            raise ValueError(
                f"'{file.path}' belongs to a run with other settings "
                f"({_difference(file.metadata.get('identity', '{}'), self.identity)}); "
                "restore the configuration, or give the new run another name"
            )
        names = {name for name, _ in self.trained}
        stored = {key.removeprefix("trained.") for key in file if key.startswith("trained.")}
        if stored != names:
            raise ValueError(
                f"'{file.path}' holds {len(stored)} trained tensors, this run trains {len(names)}; use the "
                "same base"
            )


def checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))


def _restored(value: Tensor, device: torch.device) -> Tensor | int:
    """An optimizer's entry as it was: counters on the CPU, plain numbers where they were plain numbers."""
    if value.ndim == 0:
        return value.clone() if value.is_floating_point() else int(value)
    return value.to(device, copy=True)


def _same_run(stored: str | None, now: str) -> bool:
    """Whether two identities are of one run."""
    if stored is None or stored == now:
        return stored == now
    before, after = json.loads(stored), json.loads(now)
    if "epochs" not in before.get("training", {}):
        after.get("training", {}).pop("epochs", None)  # earlier versions did not note those of a cosine
    return before == after


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
