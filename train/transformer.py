"""Training the small transformer with FE2E's objective on encoded scenes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from fe2e_core.conditioning import Conditioning
from train.backend import build_transformer, velocity_of
from train.config import LatentPool, ScenePool, TransformerShape, TransformerTraining
from train.fast_attention import use_fast_attention
from train.latents import open_latents
from train.objective import joint_loss
from train.pixels import PixelTask
from train.pool import open_pools
from train.precision import fast_autocast
from train.replicas import train_replicas
from train.state import load_state, save_state

log = logging.getLogger(__name__)


class ConditionedTransformer(nn.Module):
    """The transformer and its constant conditioning, learned with it: context (1,T,C); pooled stays as drawn."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.transformer = build_transformer(shape)
        self.context = nn.Parameter(torch.randn(1, shape.context_tokens, shape.context_width))
        self.pooled = nn.Parameter(torch.randn(1, shape.pooled_width), requires_grad=False)

    def conditioning(self) -> Conditioning:
        return Conditioning(self.context, self.pooled)


@dataclass(frozen=True)
class TransformerTask:
    """One replica's share of a transformer step (see `train.replicas`)."""

    root: str
    small: str
    fine: str
    pool: ScenePool
    small_config: LatentPool
    fine_config: LatentPool
    config: TransformerTraining

    def prepare(self, model: nn.Module) -> None:
        use_fast_attention(model.transformer)

    def loss(self, model: nn.Module, step: int, rank: int, replicas: int) -> Tensor:
        # The picture size is the step's, the scenes are the replica's: replicas then finish together.
        shared = np.random.default_rng([self.config.seed, step])
        rng = np.random.default_rng([self.config.seed, step, rank])
        is_fine = step >= self.config.steps
        sets = (
            open_latents(Path(self.fine), self.pool, self.fine_config)
            if is_fine
            else open_latents(Path(self.small), self.pool, self.small_config)
        )
        numbers = [s.count for s in sets.values()]
        place = int(shared.choice(len(sets), p=np.array(numbers) / sum(numbers)))
        encoded = list(sets.values())[place]
        batch = max(1, (self.config.fine_batch if is_fine else self.config.batch) // replicas)
        index = np.sort(rng.choice(encoded.count, min(batch, encoded.count), replace=False))
        data = encoded.read(index)
        weight = data.valid + (1 - data.valid) * self.config.invalid_weight
        with fast_autocast():
            depth, normal = joint_loss(
                velocity_of(model.transformer), data.image, data.depth, data.normal, weight, model.conditioning(),
                self._depth_factor(place, index),
            )
        return depth + normal

    def _depth_factor(self, place: int, index: np.ndarray) -> Tensor:
        """(B,): the scenes' ranges in ln(depth) over the mean range of the pool, to the configured power."""
        pools = list(open_pools(Path(self.root), self.pool).values())
        mean = np.mean(np.concatenate([pool.log_range for pool in pools]))
        return torch.from_numpy((pools[place].log_range[index] / mean) ** self.config.range_power).float()


def make_optimizers(
    model: ConditionedTransformer, config: TransformerTraining
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """(Muon for the matrices inside the blocks, AdamW for the rest). Muon's rate is matched to AdamW's RMS."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.dim() == 2 and "transformer_blocks." in name else rest).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=config.muon_rate, weight_decay=config.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return muon, torch.optim.AdamW(rest, lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)


def learning_factor(step: float, total: int, warmup: int) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine to one hundredth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / total))
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * cosine)


def train_transformer(
    folder: Path,
    task: TransformerTask | PixelTask,
    shape: TransformerShape,
    replicas: int,
    on_step: Callable[[str], None] = log.info,
    on_save: Callable[[ConditionedTransformer], None] | None = None,
    start: ConditionedTransformer | None = None,
    stage: str = "transformer",
) -> ConditionedTransformer:
    """Train from `start` (from nothing without), or resume from `folder`; returns the moving average of the weights.

    `on_save` is given that average at each save. `stage` names the file in `folder` and the lines of progress.
    """
    config = task.config
    total = config.steps + config.fine_steps
    torch.manual_seed(config.seed)
    model, averaged = ConditionedTransformer(shape), ConditionedTransformer(shape)
    if start is not None:
        model.load_state_dict(start.state_dict())
    optimizers = make_optimizers(model, config)
    rates = (config.muon_rate, config.learning_rate)
    file = folder / f"{stage}.safetensors"
    average: dict[str, Tensor] = {}
    first = load_state(file, model, optimizers, average)
    if not average:
        average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    began, losses = time.time(), []

    def update(step: int, loss: float) -> None:
        factor = learning_factor(step, total, config.warmup)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], config.clip)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        keep = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        losses.append(loss)
        if (step + 1) % 20 == 0:
            speed = (time.time() - began) / (step + 1 - first)
            on_step(f"{stage} {step + 1}/{total} loss {np.mean(losses[-20:]):.4f} {speed:.3f} s/step")
        if (step + 1) % config.save_every == 0 or step + 1 == total:
            save_state(file, model, optimizers, step + 1, average)
            if on_save is not None:
                averaged.load_state_dict(average)
                on_save(averaged)

    if first < total:
        train_replicas(model, task, range(first, total), replicas, update)
    averaged.load_state_dict(average)
    return averaged.eval().requires_grad_(False)


__all__ = ["ConditionedTransformer", "FluxTransformer2DModel", "TransformerTask", "train_transformer"]
