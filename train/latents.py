"""The training pool as latents on disk, so that transformer training never runs the autoencoder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from train.augmentation import augment_pictures
from train.backend import LATENT_CHANNELS, encode
from train.config import LatentPool, ScenePool
from train.fast_norm import use_fast_norms
from train.objective import latent_mask
from train.pool import Pool, Sample, Size, open_pools, scene_numbers
from train.precision import fast_autocast
from train.vae import as_pictures

log = logging.getLogger(__name__)

CHUNK = 8
"""Scenes encoded together; whether they are mirrored is drawn once per chunk."""
_TOGETHER = 3
"""Pictures in one call of the encoder: more of them leave the processor's cache and take half as long again each."""

_KINDS = ("image", "depth", "normal")


@dataclass(frozen=True)
class LatentBatch:
    """image, depth, normal (B,16,h,w) float32 on the FLUX scale; valid (B,1,h,w) float32, 1 where all pixels count."""

    image: Tensor
    depth: Tensor
    normal: Tensor
    valid: Tensor


class LatentSet:
    """Latents of one picture size, memory-mapped BF16 (stored as its 16 bits)."""

    def __init__(self, folder: Path, size: Size, count: int, mode: str = "r"):
        self.size, self.count = size, count
        height, width = size[0] // 8, size[1] // 8
        folder.mkdir(parents=True, exist_ok=True)
        self.arrays = {
            kind: np.memmap(folder / f"{kind}.bin", np.int16, mode, shape=(count, LATENT_CHANNELS, height, width))
            for kind in _KINDS
        }
        self.valid = np.memmap(folder / "valid.bin", np.uint8, mode, shape=(count, 1, height, width))

    def write(self, index: np.ndarray, batch: LatentBatch) -> None:
        for kind in _KINDS:
            self.arrays[kind][index] = getattr(batch, kind).to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        self.valid[index] = batch.valid.to(torch.uint8).numpy()

    def read(self, index: np.ndarray) -> LatentBatch:
        values = [
            torch.from_numpy(self.arrays[kind][index]).view(torch.bfloat16).float() for kind in _KINDS
        ]
        return LatentBatch(values[0], values[1], values[2], torch.from_numpy(self.valid[index]).float())


def scaled_size(size: Size, scale: float) -> Size:
    """A picture size times `scale`, to the nearest multiple of 16, at least 16."""
    height, width = (max(16, 16 * round(side * scale / 16)) for side in size)
    return height, width


def resized(sample: Sample, size: Size) -> Sample:
    """Smaller: the image is averaged, labels and normals are picked, so that they stay exact."""
    if tuple(sample.label.shape[-2:]) == size:
        return sample
    return Sample(
        F.interpolate(sample.image, size, mode="bilinear", antialias=True),
        F.interpolate(sample.label[:, None], size, mode="nearest-exact")[:, 0],
        F.interpolate(sample.normal, size, mode="nearest-exact"),
        F.interpolate(sample.valid[:, None].float(), size, mode="nearest-exact")[:, 0] > 0,
    )


def encode_sample(autoencoder: AutoencoderKL, sample: Sample) -> LatentBatch:
    """What the objective needs of one sample."""
    pictures = torch.cat(as_pictures(sample)).to(memory_format=torch.channels_last)
    with torch.no_grad(), fast_autocast():
        latents = torch.cat([encode(autoencoder, part) for part in pictures.split(_TOGETHER)]).float().contiguous()
    image, depth, normal = latents.chunk(3)
    return LatentBatch(image, depth, normal, latent_mask(sample.valid))


def pixels_of_chunk(source: Pool, size: Size, begin: int, end: int, config: LatentPool) -> Sample:
    """Scenes begin..end of a pool just as they are encoded: mirrored or not, resized, augmented."""
    rng = np.random.default_rng([config.seed, *size, begin])
    sample = source.read(np.arange(begin, end))
    if rng.random() < 0.5:
        sample = sample.flipped()
    sample = resized(sample, scaled_size(size, config.scale))
    return Sample(augment_pictures(sample.image, rng), sample.label, sample.normal, sample.valid)


def _encode_share(
    root: str, target: str, pool: ScenePool, config: LatentPool, autoencoder: AutoencoderKL, worker: int, workers: int
) -> None:
    torch.set_num_threads(1)
    use_fast_norms(autoencoder)
    for size, source in open_pools(Path(root), pool).items():
        count = min(source.count, int(round(source.count * config.share)))
        goal = scaled_size(size, config.scale)
        latents = LatentSet(_folder(Path(target), goal), goal, count, "r+")
        for begin in range(worker * CHUNK, count, workers * CHUNK):
            end = min(begin + CHUNK, count)
            sample = pixels_of_chunk(source, size, begin, end, config)
            latents.write(np.arange(begin, end), encode_sample(autoencoder, sample))


def _folder(root: Path, size: Size) -> Path:
    return root / f"{size[0]}x{size[1]}"


def build_latents(
    root: Path,
    target: Path,
    pool: ScenePool,
    config: LatentPool,
    autoencoder: AutoencoderKL,
    on_step: Callable[[str], None] = log.info,
) -> dict[Size, LatentSet]:
    """Encode the pool at `root` into `target`, or open what an earlier run of the same configuration encoded."""
    done, stamp = target / "done.json", json.dumps([asdict(pool), asdict(config)], sort_keys=True)
    if not (done.exists() and done.read_text() == stamp):
        on_step(f"encoding {int(round(pool.scenes * config.share))} scenes at scale {config.scale:.3g}")
        for size, numbers in scene_numbers(pool).items():
            goal = scaled_size(size, config.scale)
            LatentSet(_folder(target, goal), goal, int(round(len(numbers) * config.share)), "w+")
        context = multiprocessing.get_context("spawn")
        share = [(str(root), str(target), pool, config, autoencoder, i, pool.workers) for i in range(pool.workers)]
        with context.Pool(pool.workers) as processes:
            processes.starmap(_encode_share, share, chunksize=1)
        temporary = done.with_suffix(".tmp")
        temporary.write_text(stamp)
        os.replace(temporary, done)
    return open_latents(target, pool, config)


def open_latents(target: Path, pool: ScenePool, config: LatentPool) -> dict[Size, LatentSet]:
    """The encoded pool at `target`, by picture size."""
    sets = {}
    for size, numbers in scene_numbers(pool).items():
        goal = scaled_size(size, config.scale)
        sets[goal] = LatentSet(_folder(target, goal), goal, int(round(len(numbers) * config.share)))
    return sets
