"""What a fine-tuning run is told. Each row of the paper's Tables 4 and 5 is one file of train/configs/."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fe2e_core.quantization import SCHEMES
from train.data.settings import DataConfig, data_config
from train.dispersive import DispersiveConfig
from train.typed_toml import build_config, read_toml

STARTS = ("zero", "noise")
TIMES = ("one", "random")


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
    Kontext). dtype: of the frozen base, "bf16", "fp32", or "fp8" (the Linears of the blocks in eight bits,
    computed in BF16). fold: put constants in the place of the modulation layers, a quarter of the released
    base."""

    checkpoint: str = ""
    transformer: str = ""
    vae: str = ""
    prompt_cache: str = ""
    conditioning: str = ""
    guidance: float = 1.0
    dtype: str = "bf16"
    fold: bool = False

    def __post_init__(self) -> None:
        parts = (
            bool(self.transformer) and bool(self.vae) and bool(self.prompt_cache) != bool(self.conditioning)
        )
        if bool(self.checkpoint) == parts or (self.checkpoint and (self.transformer or self.vae)):
            raise ValueError(
                "expected either checkpoint, or transformer, vae and one of prompt_cache and conditioning"
            )
        if self.dtype not in ("bf16", "fp32", "fp8"):
            raise ValueError(f"dtype is {self.dtype!r}; expected 'bf16', 'fp32' or 'fp8'")


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
    """steps: optimizer steps, 0 for `epochs` times the pictures. accumulate: batches per step. clip: largest
    gradient norm, 0 for none. warmup: steps. schedule: "constant" or "cosine" to a hundredth. keep: newest
    checkpoints kept."""

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

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; expected 'constant' or 'cosine'")
        if min(self.steps, self.warmup) < 0 or min(self.accumulate, self.save_every, self.keep) < 1:
            raise ValueError("steps and warmup are at least 0; accumulate, save_every and keep at least 1")
        if self.steps == 0 and not self.epochs > 0:
            raise ValueError("expected steps or epochs above 0")


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

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name

    def identity(self) -> str:
        """What must not change between a run and its continuation, as JSON; how long it runs and where may."""
        about = asdict(self)
        for key in ("out", "name"):
            del about[key]
        for key in ("steps", "epochs", "save_every", "keep", "gradient_checkpointing"):
            if key != "steps" or self.training.schedule == "constant":
                del about["training"][key]
        for key in ("workers", "sources"):
            del about["data"][key]  # the sampler checks the datasets itself
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


def load_recipe(path: str) -> FinetuneConfig:
    """A TOML file as a run. Raises FileNotFoundError, or ValueError naming file, table and key."""
    raw = read_toml(path)
    data = raw.pop("data", None)
    if data is None:
        raise ValueError(f"{path}: there is no [data] table; train/data/settings.py shows one")
    rest = build_config(raw, _Rest, path)
    return FinetuneConfig(
        data=data_config(data, path), **{key: getattr(rest, key) for key in _Rest.__dataclass_fields__}
    )
