"""One training run of the study: steps, a learning rate schedule, and a folder from which it goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from train.journal import LOSSES, Journal, read_journal
from train.precision import fast_autocast
from train.state import load_state, save_state
from train.transformer import learning_factor

_CLIP = 1.0


@dataclass(frozen=True)
class Schedule:
    """`steps` with Muon at `learning_rate` for the matrices inside the blocks, and AdamW at half of it for the rest: linear
    warm-up, then a cosine to a hundredth. Saved every `save_every` steps."""

    steps: int
    learning_rate: float
    warmup: int
    weight_decay: float
    save_every: int


def finished(folder: Path) -> bool:
    """Whether the run in this folder is over."""
    return (folder / "done").is_file()


def weights_file(folder: Path) -> Path:
    return folder / "state.safetensors"


def _optimizers(model: nn.Module, schedule: Schedule) -> dict[torch.optim.Optimizer, float]:
    """Optimizers, each with its full learning rate. Muon's steps are of AdamW's size (RMS)."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inside = parameter.dim() == 2 and "transformer_blocks." in name and ".norm" not in name
            (matrices if inside else rest).append(parameter)
    rate, decay = schedule.learning_rate, schedule.weight_decay
    result: dict[torch.optim.Optimizer, float] = {
        torch.optim.AdamW(rest, rate / 2, weight_decay=decay if not matrices else 0.0, fused=True): rate / 2
    }
    if matrices:
        muon = torch.optim.Muon(matrices, rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        result[muon] = rate
    return result


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    folder: Path,
    may_go_on: Callable[[], bool],
) -> list[float] | None:
    """Train `model` in place, or go on where the run in `folder` was stopped, or load it finished; the loss of each
    step. None when `may_go_on` said no on the way: the state is saved then. `loss_of(step)` depends on the step alone.

    A run that is killed and one that is not give the same weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = _optimizers(model, schedule)
    file = weights_file(folder)
    first = load_state(file, model, list(optimizers))
    journal = Journal(folder / LOSSES)
    journal.resume(first)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(first, schedule.steps):
        with fast_autocast():
            loss = loss_of(step)
        loss.backward()
        value = float(loss.detach())
        if value != value:
            raise FloatingPointError(f"{folder}: the loss is not a number at step {step + 1}; lower the learning rate")
        torch.nn.utils.clip_grad_norm_(trained, _CLIP)
        factor = learning_factor(step, schedule.steps, schedule.warmup)
        for optimizer, rate in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        journal.append({"step": step + 1, "loss": value})
        stop = not may_go_on()
        if stop or (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            save_state(file, model, list(optimizers), step + 1)
        if stop and step + 1 < schedule.steps:
            return None
    (folder / "done").touch()
    model.eval()
    return [row["loss"] for row in read_journal(folder / LOSSES)]
