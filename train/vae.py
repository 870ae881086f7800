"""The small autoencoder of the FLUX form: trained on pictures, depth labels and normals, then put on FLUX's scale."""

from __future__ import annotations

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

from train.augmentation import augment_pictures
from train.backend import SCALE, SHIFT, build_autoencoder
from train.config import AutoencoderShape, AutoencoderTraining, ScenePool
from train.fast_norm import use_fast_norms, use_plain_norms
from train.pool import Pool, Sample, Size, open_pools
from train.precision import fast_autocast
from train.replicas import train_replicas
from train.state import load_state, save_state

log = logging.getLogger(__name__)

_SCALE = 2.0**-10
_SOFT_EPSILON = 1e-6 / _SCALE**2
"""The FLUX form normalises 32 groups of channels with epsilon 1e-6, and that takes a flat picture's colour away when a
group has two channels. With an epsilon near one the norm is almost linear for small activations and colour passes.
Both are the same network: activations 1024 times smaller turn the one epsilon into the other (`fold_epsilon`).
"""

_WHOLE = 0.15
"""Share of the steps, at the end, on whole pictures: normalisation statistics of crops are not those of pictures."""


def as_pictures(sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """What the autoencoder sees, each (B,3,H,W) in [-1,1]: the image, the label three times, the normals."""
    return sample.image * 2 - 1, sample.label[:, None].expand_as(sample.image), sample.normal


def fold_latent_scale(autoencoder: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Change the last encoder and first decoder layer in place so that latents come out on the FLUX scale.

    mean, std (16,): per channel, of the posterior means now. Afterwards (posterior mean - 0.1159) * 0.3611 has mean 0
    and deviation 1, and the decoder undoes it: exactly inside, but its zero padding now stands for another value, so
    a few steps of training should follow.
    """
    factor = 1 / (std * SCALE)
    offset = SHIFT - mean * factor
    with torch.no_grad():
        last, first = autoencoder.encoder.conv_out, autoencoder.decoder.conv_in
        channels = len(mean)
        last.weight[:channels] *= factor[:, None, None, None]
        last.bias[:channels] = last.bias[:channels] * factor + offset
        last.bias[channels:] += 2 * torch.log(factor)
        first.bias -= (first.weight.sum((2, 3)) * (offset / factor)).sum(1)
        first.weight /= factor[:, None, None]


def soften_norms(autoencoder: AutoencoderKL, epsilon: float = _SOFT_EPSILON) -> None:
    """Set the epsilon of every norm, in place."""
    for module in autoencoder.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = epsilon


def fold_epsilon(autoencoder: AutoencoderKL) -> None:
    """From the training form to the FLUX form, in place: the same function with epsilon 1e-6.

    What writes into the residual stream, and what stands between the two norms of a block, is scaled by 2^-10;
    layers that read the stream and write it again only need their biases scaled.
    """
    _scale_stream(autoencoder, _SCALE)
    soften_norms(autoencoder, 1e-6)


def unfold_epsilon(autoencoder: AutoencoderKL) -> None:
    """Undo `fold_epsilon` exactly (powers of two), so that a finished autoencoder can be trained further."""
    _scale_stream(autoencoder, 1 / _SCALE)
    soften_norms(autoencoder)


def _scale_stream(autoencoder: AutoencoderKL, factor: float) -> None:
    writes = ("conv_in", "conv1", "conv2", "attentions.0.to_out.0")
    carries = ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
    with torch.no_grad():
        for name, module in autoencoder.named_modules():
            if name.endswith(writes):
                module.weight *= factor
                module.bias *= factor
            elif name.endswith(carries):
                module.bias *= factor


def latent_statistics(autoencoder: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (16,) of the posterior means of pictures (B,3,H,W) in [-1,1]."""
    with torch.no_grad():
        latents = autoencoder.encode(pictures).latent_dist.mean.float()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


def prior_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of posteriors from the prior on FLUX's scale (mean SHIFT, deviation 1 / SCALE), elementwise."""
    prior = 2 * math.log(1 / SCALE)
    return 0.5 * ((mean - SHIFT).square() * SCALE**2 + (logvar - prior).exp() - 1 - (logvar - prior))


def reconstruction_loss(autoencoder: AutoencoderKL, pictures: Tensor, kl_weight: float) -> Tensor:
    """Loss (scalar) of pictures (B,3,H,W) in [-1,1] through a sampled posterior: L1 + L2 + KL to the FLUX scale.

    The posterior is sampled here and only here: the noise makes the decoder smooth, so that it forgives a
    transformer that is a little wrong. `kl_weight` is per pixel.
    """
    with fast_autocast():
        moments = autoencoder.encoder(pictures)
        mean, logvar = moments.float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latent = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        result = autoencoder.decoder(latent).float()
    error = result - pictures
    divergence = prior_divergence(mean, logvar).sum() / pictures[:, 0].numel()
    return error.abs().mean() + error.square().mean() + kl_weight * divergence


@dataclass(frozen=True)
class AutoencoderTask:
    """One replica's share of an autoencoder step (see `train.replicas`)."""

    root: str
    pool: ScenePool
    config: AutoencoderTraining

    def prepare(self, model: nn.Module) -> None:
        use_fast_norms(model)

    def loss(self, model: nn.Module, step: int, rank: int, replicas: int) -> Tensor:
        rng = np.random.default_rng([self.config.seed, step, rank])
        torch.manual_seed(int(rng.integers(1 << 31)))
        pools = open_pools(Path(self.root), self.pool)
        pool = pools[list(pools)[int(rng.integers(len(pools)))]]
        whole = step >= whole_pictures_from(self.config)
        count = 1 if whole else max(1, self.config.batch // (3 * replicas))
        sample = pool.read(np.sort(rng.choice(pool.count, min(count, pool.count), replace=False)))
        sample = Sample(augment_pictures(sample.image, rng), sample.label, sample.normal, sample.valid)
        if rng.random() < 0.5:
            sample = sample.flipped()
        pictures = torch.cat(as_pictures(sample))
        if not whole:
            pictures = _crops(pictures, self.config.crop, rng)
        return reconstruction_loss(model, pictures.to(memory_format=torch.channels_last), self.config.kl_weight)


def whole_pictures_from(config: AutoencoderTraining) -> int:
    """The step from which the autoencoder sees whole pictures, on the FLUX scale."""
    return int(config.steps * (1 - _WHOLE))


def train_autoencoder(
    folder: Path,
    root: Path,
    pool: ScenePool,
    shape: AutoencoderShape,
    config: AutoencoderTraining,
    replicas: int,
    on_step: Callable[[str], None] = log.info,
) -> AutoencoderKL:
    """Train and normalise the autoencoder on the pool at `root`; resumes from `folder`, or returns the finished one."""
    torch.manual_seed(config.seed)
    model = build_autoencoder(shape).to(memory_format=torch.channels_last)
    soften_norms(model)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.0, fused=True)
    file = folder / "autoencoder.safetensors"
    first = load_state(file, model, [optimizer])
    pools = open_pools(root, pool)
    began, running = time.time(), []

    def update(step: int, loss: float) -> None:
        warm = min(1.0, (step + 1) / 50)
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * cosine
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running.append(loss)
        if step + 1 == whole_pictures_from(config):
            mean, std = latent_statistics(model, pictures_of(pools, np.random.default_rng(config.seed)))
            fold_latent_scale(model, mean, std)
            optimizer.state.clear()
        if (step + 1) % 50 == 0:
            speed = (time.time() - began) / (step + 1 - first)
            on_step(f"autoencoder {step + 1}/{config.steps} loss {np.mean(running[-50:]):.4f} {speed:.3f} s/step")
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            save_state(file, model, [optimizer], step + 1)

    if first < config.steps:
        task = AutoencoderTask(str(root), pool, config)
        train_replicas(model, task, range(first, config.steps), replicas, update)
        use_plain_norms(model)
    fold_epsilon(model)
    return model.eval().requires_grad_(False)


def pictures_of(pools: dict[Size, Pool], rng: np.random.Generator, count: int = 32) -> Tensor:
    """A mixture of images, labels and normals (3 * count, 3, H, W) for statistics, from the largest pool."""
    pool = max(pools.values(), key=lambda p: p.count)
    return torch.cat(as_pictures(pool.read(np.sort(rng.choice(pool.count, min(count, pool.count), replace=False)))))


def _crops(pictures: Tensor, crop: int, rng: np.random.Generator) -> Tensor:
    """One random square of each picture (B,3,H,W) -> (B,3,crop,crop)."""
    _, _, height, width = pictures.shape
    side = min(crop, height, width)
    squares = []
    for picture in pictures:
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        squares.append(picture[:, top : top + side, left : left + side])
    return torch.stack(squares)
