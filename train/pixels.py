"""A last stage of the small model: the transformer's loss behind the decoder, in what the scores are made of.

A latent that is near the right one can still decode into a wrong edge, and the mean square of latents counts the sky's
blur like the floor's slope. Here a step decodes what is predicted and asks for depth up to the scale and shift that
evaluation takes out as well (FE2E's logarithmic alignment), and for angles. The autoencoder stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fe2e_core.packing import predict_latents
from train.backend import SCALE, SHIFT, velocity_of
from train.config import LatentPool, ScenePool, TransformerTraining
from train.fast_attention import use_fast_attention
from train.fast_norm import use_fast_norms
from train.latents import CHUNK, open_latents, pixels_of_chunk
from train.pool import open_pools
from train.precision import fast_autocast

ABSOLUTE = 0.25
"""Weight of depth errors that alignment would take out: the label's own range should stay right, too."""


def aligned_error(predicted: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Mean |s * predicted + t - label| over each sample's valid pixels (B,), s and t by least squares.

    predicted, label (B,H,W); valid (B,H,W) float32, 0 or 1. A sample without a valid pixel gives 0.
    """
    count = valid.sum((1, 2)).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return (values * valid).sum((1, 2)) / count

    centred = predicted - mean(predicted)[:, None, None]
    target = label - mean(label)[:, None, None]
    slope = mean(centred * target) / mean(centred.square()).clamp_min(1e-4)
    return mean((slope[:, None, None] * centred - target).abs())


def angles(predicted: Tensor, normal: Tensor) -> Tensor:
    """Angle in radians (B,H,W) between predicted normals (B,3,H,W), of any length, and unit normals."""
    cosine = (F.normalize(predicted, dim=1, eps=1e-3) * normal).sum(1)
    # The slope of the arc cosine is infinite at 1.
    return torch.arccos(cosine.clamp(-0.9999, 0.9999))


@dataclass(frozen=True)
class PixelTask:
    """One replica's share of a step (see `train.replicas`): scenes of one chunk of the encoded pool."""

    root: str
    latents: str
    pool: ScenePool
    latent_config: LatentPool
    config: TransformerTraining
    autoencoder: AutoencoderKL

    def prepare(self, model: nn.Module) -> None:
        use_fast_attention(model.transformer)
        use_fast_norms(self.autoencoder)

    def loss(self, model: nn.Module, step: int, rank: int, replicas: int) -> Tensor:
        shared = np.random.default_rng([self.config.seed, step])
        rng = np.random.default_rng([self.config.seed, step, rank])
        pools = open_pools(Path(self.root), self.pool)
        numbers = [p.count for p in pools.values()]
        place = int(shared.choice(len(pools), p=np.array(numbers) / sum(numbers)))
        size, pool = list(pools.items())[place]
        encoded = list(open_latents(Path(self.latents), self.pool, self.latent_config).values())[place]
        begin = int(rng.integers(max(1, encoded.count // CHUNK))) * CHUNK
        end = min(begin + CHUNK, encoded.count)
        part = slice(0, max(1, self.config.batch // replicas))
        index = np.arange(begin, end)[part]
        pixels = pixels_of_chunk(pool, size, begin, end, self.latent_config)
        label, normal, valid = pixels.label[part], pixels.normal[part], pixels.valid[part].float()
        half = torch.from_numpy(pool.log_range[index]) / 2
        with fast_autocast():
            latents = torch.cat(
                predict_latents(velocity_of(model.transformer), encoded.read(index).image, model.conditioning())
            )
            latents = (latents.float() / SCALE + SHIFT).to(memory_format=torch.channels_last)
            depth, facing = self.autoencoder.decoder(latents).float().chunk(2)
        depth = depth.mean(1)
        weight = valid + self.config.invalid_weight * (1 - valid)
        absolute = ((depth - label).abs() * weight).mean((1, 2))
        # In ln(depth), where a small error is a relative error of depth.
        of_depth = (half * (aligned_error(depth, label, valid) + ABSOLUTE * absolute)).mean()
        return of_depth + (angles(facing, normal) * weight).mean()
