"""Procedural solid textures: a colour for every point in an object's own coordinates.

A texture is sampled from a random generator (`sample_texture`) and evaluated on points (`Texture.colour`). A new
pattern is one function added to `PATTERNS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Pattern = Callable[[torch.Tensor, int], torch.Tensor]

LATTICE = 4096
PRIMES = (73856093, 19349663, 83492791)


def value_noise(points: torch.Tensor, seed: int) -> torch.Tensor:
    """Smooth noise in [0, 1] on `points` (3, N): random values at integer corners, smoothly interpolated."""
    table = torch.from_numpy(np.random.default_rng([11, seed]).random(LATTICE, dtype=np.float32))
    base = torch.floor(points)
    weight = points - base
    weight = weight * weight * (3 - 2 * weight)
    corner = base.to(torch.int64)
    low = [corner[axis] * PRIMES[axis] for axis in range(3)]
    high = [low[axis] + PRIMES[axis] for axis in range(3)]

    def at(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return table[(x ^ y ^ z) & (LATTICE - 1)]

    layers = []
    for z in (low[2], high[2]):
        rows = [torch.lerp(at(low[0], y, z), at(high[0], y, z), weight[0]) for y in (low[1], high[1])]
        layers.append(torch.lerp(rows[0], rows[1], weight[1]))
    return torch.lerp(layers[0], layers[1], weight[2])


def _solid(points: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.zeros_like(points[0])


def _checker(points: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.floor(points).sum(0).remainder(2)


def _stripes(points: torch.Tensor, seed: int) -> torch.Tensor:
    # The seed chooses which direction the stripes run across, so that walls get both kinds.
    axis = points[seed % 3] + (0.5 * points[(seed + 1) % 3] if seed % 2 else 0)
    return (axis.remainder(1) > 0.2 + 0.1 * (seed % 5)).float()


def _tiles(points: torch.Tensor, seed: int) -> torch.Tensor:
    # A grout line lies where two of the three coordinates are away from a lattice plane and one is near it.
    edge = (points.remainder(1) - 0.5).abs()
    return (edge.sort(dim=0).values[1] > 0.46).float()


def _bricks(points: torch.Tensor, seed: int) -> torch.Tensor:
    row = torch.floor(points[1] * 2)
    along = points[0] + points[2] + 0.5 * row.remainder(2)
    mortar = (along.remainder(1) < 0.06) | ((points[1] * 2).remainder(1) < 0.12)
    shade = value_noise(torch.stack((torch.floor(along), row, torch.zeros_like(row))) + 0.5, seed)
    return torch.where(mortar, torch.ones_like(shade), 0.5 * shade)


def _noise(points: torch.Tensor, seed: int) -> torch.Tensor:
    return 0.6 * value_noise(points, seed) + 0.4 * value_noise(points * 2.7, seed + 1)


def _marble(points: torch.Tensor, seed: int) -> torch.Tensor:
    bend = value_noise(points * 1.3, seed)
    return 0.5 + 0.5 * torch.sin(6 * (points[seed % 3] + 1.5 * bend))


def _wood(points: torch.Tensor, seed: int) -> torch.Tensor:
    a, b = points[seed % 3], points[(seed + 1) % 3]
    ring = (a * a + b * b).sqrt() + 0.3 * value_noise(points, seed)
    return (4 * ring).remainder(1)


def _dots(points: torch.Tensor, seed: int) -> torch.Tensor:
    offset = points.remainder(1) - 0.5
    return ((offset * offset).sum(0) < 0.11).float()


def _speckle(points: torch.Tensor, seed: int) -> torch.Tensor:
    return value_noise(points * 9, seed)


PATTERNS: dict[str, Pattern] = {
    "solid": _solid,
    "checker": _checker,
    "stripes": _stripes,
    "tiles": _tiles,
    "bricks": _bricks,
    "noise": _noise,
    "marble": _marble,
    "wood": _wood,
    "dots": _dots,
    "speckle": _speckle,
}


@dataclass(frozen=True)
class Texture:
    """Two colours mixed by a pattern. `scale` is pattern periods per metre; colours are linear RGB in [0, 1]."""

    pattern: str
    scale: float
    offset: tuple[float, float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    grain: float = 0.0
    seed: int = 0

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        """(3, N) object coordinates in metres -> (3, N) linear RGB albedo in [0, 1]."""
        scaled = points * self.scale + torch.tensor(self.offset, dtype=points.dtype)[:, None]
        mix = PATTERNS[self.pattern](scaled, self.seed)
        low = torch.tensor(self.low, dtype=points.dtype)[:, None]
        high = torch.tensor(self.high, dtype=points.dtype)[:, None]
        albedo = low + (high - low) * mix
        if self.grain > 0:
            albedo = albedo * (1 + self.grain * (value_noise(points * 23 + 0.37, self.seed + 7) - 0.5))
        return albedo.clamp(0, 1)


def sample_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """A linear RGB albedo: mostly muted (interiors and streets), sometimes saturated."""
    grey = rng.uniform(0.04, 0.9) ** 1.3
    saturation = rng.uniform(0, 0.25) if rng.random() < 0.6 else rng.uniform(0.3, 1.0)
    tint = rng.random(3)
    tint = tint / tint.max()
    colour = grey * ((1 - saturation) + saturation * tint)
    return (float(colour[0]), float(colour[1]), float(colour[2]))


def sample_texture(rng: np.random.Generator, size: float, plain: float = 0.3) -> Texture:
    """A random texture for an object `size` metres large; `plain` is the probability of no pattern at all."""
    names = [name for name in PATTERNS if name != "solid"]
    pattern = "solid" if rng.random() < plain else str(rng.choice(names))
    low, high = sample_colour(rng), sample_colour(rng)
    if rng.random() < 0.6:  # low contrast is the common case in the world
        amount = rng.uniform(0.1, 0.6)
        high = tuple(float(a + (b - a) * amount) for a, b in zip(low, high, strict=True))
    return Texture(
        pattern=pattern,
        scale=float(rng.uniform(1.5, 9) / size),
        offset=tuple(float(v) for v in rng.uniform(0, 1, 3)),
        low=low,
        high=high,
        grain=float(rng.uniform(0, 0.5)) if rng.random() < 0.5 else 0.0,
        seed=int(rng.integers(0, 10000)),
    )
