"""What a training run is told: frozen dataclasses, read from a TOML file. An unknown key is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TypeVar

from train.typed_toml import build_config, read_toml

T = TypeVar("T")


@dataclass(frozen=True)
class AutoencoderShape:
    """The FLUX autoencoder's form: channels per level are width * multipliers (multiples of 32), 4 levels."""

    width: int = 32
    multipliers: tuple[int, ...] = (1, 1, 2, 2)
    blocks: int = 1


@dataclass(frozen=True)
class TransformerShape:
    """A FLUX transformer: width a multiple of 128 (one head), at least one double block."""

    width: int = 256
    double_blocks: int = 1
    single_blocks: int = 10
    context_tokens: int = 4
    context_width: int = 128
    pooled_width: int = 64


@dataclass(frozen=True)
class ScenePool:
    """Ray-cast training scenes. `sizes` are (height, width) in pixels, multiples of 16, by scene number in turn.

    """

    scenes: int = 9000
    first_seed: int = 0
    sizes: tuple[tuple[int, int], ...] = ((144, 192), (144, 192), (192, 144), (160, 160))
    workers: int = 2


@dataclass(frozen=True)
class LatentPool:
    """The first `share` of the scenes, encoded at `scale` times their size (to multiples of 16)."""

    scale: float = 1.0
    share: float = 1.0
    seed: int = 3


@dataclass(frozen=True)
class AutoencoderTraining:
    """Autoencoder steps on square crops (pixels) of photographs, depth labels and normals alike."""

    steps: int = 4000
    batch: int = 24
    crop: int = 64
    learning_rate: float = 1e-3
    kl_weight: float = 1e-6
    seed: int = 1


@dataclass(frozen=True)
class TransformerTraining:
    """Steps on small pictures, then `fine_steps` on whole-size ones.

    Matrices inside the blocks are trained by Muon, everything else by AdamW. Learning rates rise over `warmup` steps
    and fall along one cosine over all steps. `invalid_weight` is the loss weight of latents with pixels that do not
    count (sky): they are taught as far and facing, weakly, because a demonstration shows them. `range_power` weights
    the depth loss of a scene by its range in ln(depth), over the mean range, to this power: an error of a label is an
    error of depth in proportion to the range (0: every scene alike).
    """

    steps: int = 3000
    fine_steps: int = 600
    batch: int = 16
    fine_batch: int = 8
    learning_rate: float = 2e-3
    muon_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: int = 100
    ema: float = 0.995
    clip: float = 1.0
    invalid_weight: float = 0.1
    range_power: float = 0.0
    save_every: int = 100
    seed: int = 2


@dataclass(frozen=True)
class DecoderTraining:
    """Decoder steps on what the transformer predicts; none with `steps` 0."""

    steps: int = 250
    batch: int = 8
    learning_rate: float = 5e-4
    invalid_weight: float = 0.1
    seed: int = 5


@dataclass(frozen=True)
class NanoConfig:
    """One run of `python -m train nano`. `work` is a folder for what a stopped run resumes from.

    `start` is a small FE2E checkpoint to go on from: its autoencoder is kept as it is and its transformer is trained
    further. Empty: both begin from nothing. `pixels` are the transformer's last steps, with the loss behind the decoder.
    With `blend` the transformer is the mean of the start, of what its steps on latents gave and of the last.
    """

    work: str = "out/nano"
    name: str = "fe2e-nano"
    start: str = ""
    replicas: int = 2
    autoencoder_shape: AutoencoderShape = field(default_factory=AutoencoderShape)
    transformer_shape: TransformerShape = field(default_factory=TransformerShape)
    pool: ScenePool = field(default_factory=ScenePool)
    small: LatentPool = field(default_factory=lambda: LatentPool(scale=2 / 3))
    fine: LatentPool = field(default_factory=lambda: LatentPool(share=0.3, seed=4))
    autoencoder: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    transformer: TransformerTraining = field(default_factory=TransformerTraining)
    pixels: TransformerTraining = field(default_factory=lambda: TransformerTraining(steps=0, fine_steps=0))
    blend: bool = False
    decoder: DecoderTraining = field(default_factory=DecoderTraining)
    held_out: int = 200


def load_config(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Read a TOML file into the frozen dataclass `kind`; tables are nested dataclasses.

    Raises FileNotFoundError, or ValueError naming the file and the key for unknown keys and wrong types.
    """
    return build_config(read_toml(path), kind, str(path))
