"""What a training run is told: frozen dataclasses, read from a TOML file. An unknown key is an error."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

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
    count (sky): they are taught as far and facing, weakly, because a demonstration shows them.
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
    further. Empty: both begin from nothing.
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
    decoder: DecoderTraining = field(default_factory=DecoderTraining)
    held_out: int = 200


def load_config(path: str | os.PathLike[str], kind: type[T]) -> T:
    """Read a TOML file into the frozen dataclass `kind`; tables are nested dataclasses.

    Raises FileNotFoundError, or ValueError naming the file and the key for unknown keys and wrong types.
    """
    raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    return _build(raw, kind, str(path))


def _build(raw: dict[str, Any], kind: type, where: str) -> Any:
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in names:
            raise ValueError(f"{where}: unknown key '{key}'; expected one of {', '.join(names)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: '{key}' is {value!r}; expected a table")
            values[key] = _build(value, hint, f"{where} [{key}]")
        elif hint in (int, float, str):
            if isinstance(value, bool) or not isinstance(value, (int, float) if hint is float else hint):
                raise ValueError(f"{where}: '{key}' is {value!r}; expected {hint.__name__}")
            values[key] = hint(value)
        else:
            if not isinstance(value, list):
                raise ValueError(f"{where}: '{key}' is {value!r}; expected a list")
            values[key] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return kind(**values)
