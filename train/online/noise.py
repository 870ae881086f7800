"""`train.textures.value_noise` for many seeds at once, from one table of all seeds."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from train.textures import LATTICE, PRIMES

SEEDS = 10_010
"""Textures, hills and clouds draw their seeds below 10,000 and add up to 7."""


@cache
def noise_table(device: torch.device) -> Tensor:
    """(SEEDS * 4096,) float32: the random corner values of every seed."""
    rows = [np.random.default_rng([11, seed]).random(LATTICE, dtype=np.float32) for seed in range(SEEDS)]
    return torch.from_numpy(np.concatenate(rows)).to(device)


def noise(table: Tensor, x: Tensor, y: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """Smooth noise in [0, 1] at x, y, z with `seed` (int64), all of one shape or broadcastable."""
    base = [torch.floor(v) for v in (x, y, z)]
    weight = [v - b for v, b in zip((x, y, z), base, strict=True)]
    weight = [w * w * (3 - 2 * w) for w in weight]
    low = [b.to(torch.int64) * prime for b, prime in zip(base, PRIMES, strict=True)]
    high = [v + prime for v, prime in zip(low, PRIMES, strict=True)]
    first = seed * LATTICE

    def at(cx: Tensor, cy: Tensor, cz: Tensor) -> Tensor:
        return table[first + ((cx ^ cy ^ cz) & (LATTICE - 1))]

    layers = []
    for cz in (low[2], high[2]):
        rows = [torch.lerp(at(low[0], cy, cz), at(high[0], cy, cz), weight[0]) for cy in (low[1], high[1])]
        layers.append(torch.lerp(rows[0], rows[1], weight[1]))
    return torch.lerp(layers[0], layers[1], weight[2])
