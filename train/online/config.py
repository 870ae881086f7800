"""What `python -m train online` is told: frozen dataclasses, read from a TOML file (train/configs/nano_second.toml).

A stage ends after its `steps`, or after its `minutes` where these are not 0 and are over first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from train.config import TransformerShape, TransformerTraining


@dataclass(frozen=True)
class Stream:
    """Scenes rendered together, in how many directions each world is seen, the share of crops, and the seed of these."""

    batch: int = 128
    views: int = 2
    window_share: float = 0.3
    workers: int = 2
    seed: int = 21


@dataclass(frozen=True)
class AutoencoderSteps:
    """Steps of the whole autoencoder on `batch` scenes (photograph, label and normals of each). `kl_weight` is per pixel,
    `angle_weight` that of the normals' angles in radians."""

    steps: int = 1000
    batch: int = 32
    learning_rate: float = 1e-3
    kl_weight: float = 3e-4
    angle_weight: float = 0.3
    warmup: int = 50
    minutes: float = 0.0
    save_every: int = 200
    seed: int = 22


@dataclass(frozen=True)
class LatentSteps(TransformerTraining):
    """Steps of the transformer on latents. Each step, on average, `fresh` new samples enter a memory of `memory` samples for
    each picture size (the oldest go), and `batch` are drawn from it."""

    fresh: int = 128
    memory: int = 40_000
    minutes: float = 0.0


@dataclass(frozen=True)
class PixelSteps(TransformerTraining):
    """Steps behind the decoder, which learns as well at `decoder_rate` (0: it stays as it is). `chunk`: scenes that are
    decoded together, for memory."""

    decoder_rate: float = 2e-4
    chunk: int = 32
    minutes: float = 0.0


@dataclass(frozen=True)
class OnlineConfig:
    """One run. `start` is a small FE2E checkpoint to go on from; `mixture` one of `train.mixtures.MIXTURES`. `sizes` are
    (height, width) in turn; the first is the trained size of the result. Scenes have seeds from `first_seed` on. `held_out`:
    scenes of the quick score at the end of every stage. With `blend` the result is the mean of the weights before and after
    the last stage."""

    work: str = "out/online"
    name: str = "fe2e-nano"
    start: str = "models/fe2e-nano.safetensors"
    mixture: str = "second"
    first_seed: int = 100_000
    sizes: tuple[tuple[int, int], ...] = ((144, 192), (192, 144), (144, 192), (160, 160))
    held_out: int = 128
    blend: bool = False
    transformer_shape: TransformerShape = field(default_factory=TransformerShape)
    stream: Stream = field(default_factory=Stream)
    autoencoder: AutoencoderSteps = field(default_factory=AutoencoderSteps)
    transformer: LatentSteps = field(default_factory=LatentSteps)
    pixels: PixelSteps = field(default_factory=PixelSteps)
