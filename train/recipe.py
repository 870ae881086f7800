"""What a fine-tuning run is told. Each row of the paper's Tables 4 and 5 is one file of train/configs/."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fe2e_core.quantization import SCHEMES
from train.cache import CacheConfig
from train.data.settings import DataConfig, WeightedSource, data_config, read_sources
from train.dispersive import DispersiveConfig
from train.typed_toml import build_config, read_toml

STARTS = ("zero", "noise")
TIMES = ("one", "random")
METRICS = {"abs_rel": 1, "delta1": -1, "angle": 1}
"""What validation measures; 1 where less is better, -1 where more is."""


@dataclass(frozen=True)
class Objective:
    """What is learned (paper 3.3 to 3.5).

    start: z_0 of the flow, "zero" (fixed start, Eq. 5) or "noise". time: "one", the velocity does not depend
    on t and one step predicts (consistent velocity, Eq. 4), or "random", ordinary flow matching (Eq. 2) that
    needs `steps` steps. joint: the image's half is supervised with normals (Eq. 8). quantization: of the
    depth labels (Eq. 7)."""

    start: str = "zero"
    time: str = "one"
    joint: bool = True
    quantization: str = "log"
    steps: int = 1

    def __post_init__(self) -> None:
        for key, value, known in (
            ("start", self.start, STARTS),
            ("time", self.time, TIMES),
            ("quantization", self.quantization, SCHEMES),
        ):
            if value not in known:
                raise ValueError(f"{key} is {value!r}; expected one of {', '.join(known)}")
        if self.time == "random" and self.start == "zero":
            raise ValueError("time = 'random' needs start = 'noise': from zero, every z_t shows the answer")
        if self.steps < 1 or (self.time == "one" and self.steps != 1):
            raise ValueError(f"steps is {self.steps}; expected 1, or more with time = 'random'")


@dataclass(frozen=True)
class BaseFiles:
    """The files that training starts from: `checkpoint` alone (an FE2E checkpoint), or transformer and vae
    with the prompt_cache of an editor that has a connector, or with `conditioning` (safetensors: context
    (1,T,C), pooled (1,P)) for a generator. guidance: the fixed guidance of a base that has one (FLUX.1 dev,
    Kontext). dtype: of the frozen base, "bf16", "fp32", or the Linears of its blocks in eight bits ("fp8") or
    four ("nf4", needs bitsandbytes), computed in BF16. fold: put constants in the place of the modulation layers,
    a quarter of the released base. shard: several processes divide the base among them, each holding a part."""

    checkpoint: str = ""
    transformer: str = ""
    vae: str = ""
    prompt_cache: str = ""
    conditioning: str = ""
    guidance: float = 1.0
    dtype: str = "bf16"
    fold: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        parts = (
            bool(self.transformer) and bool(self.vae) and bool(self.prompt_cache) != bool(self.conditioning)
        )
        if bool(self.checkpoint) == parts or (self.checkpoint and (self.transformer or self.vae)):
            raise ValueError(
                "expected either checkpoint, or transformer, vae and one of prompt_cache and conditioning"
            )
        if self.dtype not in ("bf16", "fp32", "fp8", "nf4"):
            raise ValueError(f"dtype is {self.dtype!r}; expected 'bf16', 'fp32', 'fp8' or 'nf4'")
        if self.shard and self.dtype == "nf4":
            raise ValueError("shard needs weights that can be divided; expected dtype 'fp8', 'bf16' or 'fp32', not 'nf4'")


@dataclass(frozen=True)
class LoraShape:
    """rank and alpha of the LoRA on every Linear of every block. constants: on a folded base, the constants
    that took the modulation layers' place are trained as well."""

    rank: int = 64
    alpha: float = 32.0
    constants: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"rank {self.rank}, alpha {self.alpha}; expected at least 1 and more than 0")


@dataclass(frozen=True)
class Training:
    """optimizer: "adamw", or "adamw8bit" with moments in eight bits (needs bitsandbytes).
    steps: optimizer steps, 0 for `epochs` times the pictures. accumulate: batches per step. clip: largest
    gradient norm, 0 for none. warmup: steps. schedule: "constant" or "cosine" to a hundredth. keep: newest
    checkpoints kept. ema: decay of the averaged weights, which are then validated and exported; 0 for none."""

    steps: int = 0
    epochs: float = 30
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: int = 100
    schedule: str = "constant"
    clip: float = 1.0
    accumulate: int = 1
    gradient_checkpointing: bool = True
    save_every: int = 500
    keep: int = 3
    seed: int = 0
    ema: float = 0.0
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "adamw8bit"):
            raise ValueError(f"optimizer is {self.optimizer!r}; expected 'adamw' or 'adamw8bit'")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; expected 'constant' or 'cosine'")
        if min(self.steps, self.warmup) < 0 or min(self.accumulate, self.save_every, self.keep) < 1:
            raise ValueError("steps and warmup are at least 0; accumulate, save_every and keep at least 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; expected a decay such as 0.999, or 0 for none")
        if self.steps == 0 and not self.epochs > 0:
            raise ValueError("expected steps or epochs above 0")


@dataclass(frozen=True)
class ValidationConfig:
    """Scoring on a fixed set while training goes on, with the averaged weights where [training] has `ema`.

    every: optimizer steps, 0 for never; step 0 and the last one are always scored. pictures: how many, over
    all sources. drawn: how many of them on the sheet. metric: what the best checkpoint is the best in.
    sources: `[[validation.source]]`, as under [data]; without any, held-out procedural scenes of the size of
    the first training dataset."""

    every: int = 0
    pictures: int = 16
    drawn: int = 6
    metric: str = "abs_rel"
    sources: tuple[WeightedSource, ...] = ()

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}; expected one of {', '.join(METRICS)}")
        if min(self.every, self.drawn) < 0 or self.pictures < 1:
            raise ValueError(
                f"every {self.every}, pictures {self.pictures}, drawn {self.drawn}; expected at least 0, 1, 0"
            )

    def identity(self) -> str:
        """What a score depends on besides the weights, as JSON."""
        about = asdict(self)
        for key in ("every", "drawn"):
            del about[key]
        return json.dumps(about, sort_keys=True)


@dataclass(frozen=True)
class WatchConfig:
    """tensorboard: write `tensorboard/` in the run's folder. wandb: the project to send the run to, empty for
    none; it needs wandb installed (`WANDB_MODE=offline` keeps everything on this machine)."""

    tensorboard: bool = True
    wandb: str = ""

    def check(self) -> None:
        """Raises ValueError when W&B is asked for and not installed."""
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"[watch] wandb = '{self.wandb}' needs wandb, which is not installed; pip install wandb, or "
                "leave it out"
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """One run of `python -m train lora`. name: of the run and its LoRA. out: folder for checkpoints and the
    LoRA.
    """

    name: str
    base: BaseFiles
    data: DataConfig
    out: str = "out"
    objective: Objective = field(default_factory=Objective)
    dispersive: DispersiveConfig = field(default_factory=DispersiveConfig)
    lora: LoraShape = field(default_factory=LoraShape)
    training: Training = field(default_factory=Training)
    cache: CacheConfig = field(default_factory=CacheConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        if self.validation.metric == "angle" and not self.objective.joint:
            raise ValueError("[validation] metric = 'angle' needs normals: [objective] joint = true")

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name

    def identity(self) -> str:
        """What must not change between a run and its continuation, as JSON; how long it runs and where may."""
        about = asdict(self)
        for key in ("out", "name", "cache", "watch", "validation"):
            del about[key]
        for key in ("save_every", "keep", "gradient_checkpointing"):
            del about["training"][key]
        # a cosine's rate depends on the last step: on `steps` where they are given, else on `epochs`
        if self.training.schedule == "constant":
            del about["training"]["steps"]
        if self.training.schedule == "constant" or self.training.steps:
            del about["training"]["epochs"]
        for key in ("workers", "sources"):
            del about["data"][key]  # the sampler checks the datasets itself
        del about["base"]["shard"]
        return json.dumps(about, sort_keys=True)


@dataclass(frozen=True)
class _Rest:
    """The tables beside [data]."""

    name: str
    base: BaseFiles
    out: str = "out"
    objective: Objective = field(default_factory=Objective)
    dispersive: DispersiveConfig = field(default_factory=DispersiveConfig)
    lora: LoraShape = field(default_factory=LoraShape)
    training: Training = field(default_factory=Training)
    cache: CacheConfig = field(default_factory=CacheConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


def load_recipe(path: str) -> FinetuneConfig:
    """A TOML file as a run. Raises FileNotFoundError, or ValueError naming file, table and key."""
    raw = read_toml(path)
    data = raw.pop("data", None)
    if data is None:
        raise ValueError(f"{path}: there is no [data] table; train/data/settings.py shows one")
    tables = {
        "data": data_config(data, path),
        "validation": _validation(raw.pop("validation", {}), path),
    }
    rest = build_config(raw, _Rest, path)
    try:
        return FinetuneConfig(**tables, **{key: getattr(rest, key) for key in _Rest.__dataclass_fields__})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _validation(raw: Mapping[str, Any], path: str) -> ValidationConfig:
    """The `[validation]` table, whose datasets are written as those of `[data]` are."""
    table = dict(raw)
    sources = table.pop("source", None)
    config = build_config(table, ValidationConfig, f"{path} [validation]")
    return config if sources is None else replace(config, sources=read_sources(sources, path, "validation"))
