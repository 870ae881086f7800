"""The last stage: the decoder learns to read what the transformer really predicts.

A regression predicts the mean of what is possible, and a decoder that has only seen the latents of real pictures reads
such means badly. Encoder and transformer stay as they are, so latents keep their meaning; half of the loss is still on
latents of real labels and normals, so that the autoencoder stays one.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fe2e_core.packing import predict_latents
from train.backend import SCALE, SHIFT, velocity_of
from train.config import DecoderTraining, LatentPool, ScenePool
from train.fast_attention import use_fast_attention
from train.fast_norm import use_fast_norms, use_plain_norms
from train.latents import CHUNK, open_latents, pixels_of_chunk, scaled_size
from train.pool import open_pools
from train.precision import fast_autocast
from train.replicas import train_replicas
from train.state import load_state, save_state
from train.transformer import ConditionedTransformer
from train.vae import as_pictures, fold_epsilon, unfold_epsilon

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecoderTask:
    """One replica's share of a decoder step (see `train.replicas`): one chunk of the encoded pool."""

    root: str
    latents: str
    pool: ScenePool
    latent_config: LatentPool
    config: DecoderTraining
    transformer: ConditionedTransformer

    def prepare(self, model: nn.Module) -> None:
        use_fast_norms(model)
        use_fast_attention(self.transformer.transformer)

    def loss(self, model: nn.Module, step: int, rank: int, replicas: int) -> Tensor:
        shared = np.random.default_rng([self.config.seed, step])
        rng = np.random.default_rng([self.config.seed, step, rank])
        pools = open_pools(Path(self.root), self.pool)
        sets = open_latents(Path(self.latents), self.pool, self.latent_config)
        size = list(pools)[int(shared.integers(len(pools)))]
        encoded = sets[scaled_size(size, self.latent_config.scale)]
        # A pool smaller than one chunk is a chunk of its own.
        begin = int(rng.integers(max(1, encoded.count // CHUNK))) * CHUNK
        count = min(encoded.count - begin, CHUNK, max(1, self.config.batch // replicas))
        pixels = pixels_of_chunk(pools[size], size, begin, min(begin + CHUNK, encoded.count), self.latent_config)
        _, label, normal = (x[:count] for x in as_pictures(pixels))
        weight = pixels.valid[:count, None].float()
        weight = weight + self.config.invalid_weight * (1 - weight)
        batch = encoded.read(np.arange(begin, begin + count))
        with torch.no_grad(), fast_autocast():
            depth, facing = predict_latents(
                velocity_of(self.transformer.transformer), batch.image, self.transformer.conditioning()
            )
        latents = torch.cat([depth.float(), facing.float(), batch.depth, batch.normal]) / SCALE + SHIFT
        with fast_autocast():
            pictures = model(latents.to(memory_format=torch.channels_last)).float()
        error = (pictures - torch.cat([label, normal, label, normal])) * weight.repeat(4, 1, 1, 1)
        return error.abs().mean() + error.square().mean()


def refine_decoder(
    folder: Path,
    task: DecoderTask,
    autoencoder: AutoencoderKL,
    replicas: int,
    on_step: Callable[[str], None] = log.info,
) -> AutoencoderKL:
    """Train (or resume from `folder`, or return the finished) decoder, starting from a copy of `autoencoder`."""
    config = task.config
    model = copy.deepcopy(autoencoder).to(memory_format=torch.channels_last)
    unfold_epsilon(model)
    decoder = model.decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), config.learning_rate, weight_decay=0.0, fused=True)
    file = folder / "decoder.safetensors"
    first = load_state(file, decoder, [optimizer])
    began, losses = time.time(), []

    def update(step: int, loss: float) -> None:
        factor = min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        losses.append(loss)
        if (step + 1) % 10 == 0:
            speed = (time.time() - began) / (step + 1 - first)
            on_step(f"decoder {step + 1}/{config.steps} loss {np.mean(losses[-10:]):.4f} {speed:.3f} s/step")
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            save_state(file, decoder, [optimizer], step + 1)

    if first < config.steps:
        train_replicas(decoder, task, range(first, config.steps), replicas, update)
        use_plain_norms(model)
    fold_epsilon(model)
    return model.eval().requires_grad_(False)
