"""What the study is told: one TOML file, train/configs/thesis.toml."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from train.config import TransformerShape


@dataclass(frozen=True)
class Pictures:
    """height, width: of every picture in pixels, multiples of 16. pairs: (source, target) pictures of edits for both
    bases. scenes: labelled ones for fine-tuning. validation: for choosing learning rates. held_out: for the
    tables. The last two count for each domain (see `worlds.DOMAINS`). edits: held-out pairs for the bases. chunk:
    pictures in one file of the cache."""

    height: int = 48
    width: int = 64
    pairs: int = 1024
    scenes: int = 384
    validation: int = 32
    held_out: int = 64
    edits: int = 40
    chunk: int = 32

    def __post_init__(self) -> None:
        if self.height % 16 or self.width % 16 or min(self.height, self.width) < 16:
            raise ValueError(f"pictures are {self.height}x{self.width}; expected multiples of 16")
        if min(self.pairs, self.scenes, self.validation, self.held_out, self.edits, self.chunk) < 1:
            raise ValueError("pairs, scenes, validation, held_out, edits and chunk are at least 1")
        if self.edits < 5:
            raise ValueError(f"edits is {self.edits}; expected at least one pair of each of the five edits")


@dataclass(frozen=True)
class Pretraining:
    """Both bases: Muon, linear warm-up, then a cosine (`loop.Schedule`). blank: share of pictures whose instruction is left out."""

    steps: int = 1500
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: int = 50
    blank: float = 0.1
    save_every: int = 100


@dataclass(frozen=True)
class Finetuning:
    """Every row of the table: the same steps, pictures, order and schedule. rates: tried for every base alike on
    `sweep_seed`, the best one on the validation scenes is taken. euler: steps where one step does not do."""

    steps: int = 240
    batch: int = 8
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    warmup: int = 20
    weight_decay: float = 0.01
    euler: int = 10
    dispersive: float = 0.5
    save_every: int = 100

    def __post_init__(self) -> None:
        if not self.rates or self.euler < 2:
            raise ValueError(f"rates {list(self.rates)}, euler {self.euler}; expected one rate at least and 2 steps")


@dataclass(frozen=True)
class ThesisConfig:
    """work: folder of caches and weights, for resuming. documents: folder that gets thesis.md and thesis/.
    autoencoder: FE2E checkpoint whose autoencoder stays fixed. seeds: of the runs, first weights and order of the
    data alike; sweep_seed: another one."""

    work: str = "out/thesis"
    documents: str = "docs"
    autoencoder: str = "models/fe2e-nano.safetensors"
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep_seed: int = 100
    network: TransformerShape = field(
        default_factory=lambda: TransformerShape(128, 1, 3, context_tokens=1, context_width=64, pooled_width=32)
    )
    pictures: Pictures = field(default_factory=Pictures)
    pretraining: Pretraining = field(default_factory=Pretraining)
    finetuning: Finetuning = field(default_factory=Finetuning)

    def __post_init__(self) -> None:
        if self.sweep_seed in self.seeds or len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds are {list(self.seeds)}, sweep_seed {self.sweep_seed}; expected different ones")
        if self.network.single_blocks < 2:
            raise ValueError("[network] single_blocks is below 2; expected an input, a middle and an output block")

    @property
    def folder(self) -> Path:
        return Path(self.work)

    @property
    def results(self) -> Path:
        return Path(self.documents) / "thesis" / "results.json"

    def identity(self) -> str:
        """What results depend on, as JSON: with another one, no result of an earlier run counts. Seeds may be added."""
        about = asdict(self)
        for key in ("work", "documents", "seeds"):
            del about[key]
        del about["pictures"]["chunk"]
        for part in ("pretraining", "finetuning"):
            del about[part]["save_every"]
        return json.dumps(about, sort_keys=True)
