"""The data part of a configuration file: datasets with weights.

[data]
batch = 4                 # global: over all processes
seed = 0
mirror = 0.5
workers = 4

[[data.source]]
kind = "hypersim"         # "hypersim" | "vkitti" | "folder" | "procedural"
weight = 0.9
root = "/data/hypersim"

[[data.source]]
kind = "vkitti"
weight = 0.1
root = "/data/vkitti"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from train.data.folder import Folder, FolderConfig
from train.data.frame import Source
from train.data.hypersim import Hypersim, HypersimConfig
from train.data.mixture import Mixture
from train.data.procedural import Procedural, ProceduralConfig
from train.data.vkitti import VirtualKitti, VirtualKittiConfig
from train.typed_toml import build_config, read_toml

_KINDS = {
    "hypersim": (HypersimConfig, Hypersim),
    "vkitti": (VirtualKittiConfig, VirtualKitti),
    "folder": (FolderConfig, Folder),
    "procedural": (ProceduralConfig, Procedural),
}

SourceConfig = HypersimConfig | VirtualKittiConfig | FolderConfig | ProceduralConfig


@dataclass(frozen=True)
class WeightedSource:
    """One `[[data.source]]`: its name (the kind, unless given), its probability per batch, and its own
    settings.
    """

    name: str
    kind: str
    weight: float
    config: SourceConfig

    def open(self) -> Source:
        """The dataset. Raises what its class raises."""
        return _KINDS[self.kind][1](self.config, self.name)

    @property
    def held_out(self) -> bool:
        """Whether these are scenes that training must not see."""
        return isinstance(self.config, ProceduralConfig) and self.config.held_out


@dataclass(frozen=True)
class DataConfig:
    """batch: pictures a step over all processes. seed: of everything random about the data. mirror:
    probability. Raises ValueError for scenes that are held out.
    """

    sources: tuple[WeightedSource, ...]
    batch: int = 1
    seed: int = 0
    mirror: float = 0.5
    workers: int = 2

    def __post_init__(self) -> None:
        for source in self.sources:
            if source.held_out:
                raise ValueError(f"[data] '{source.name}' is held_out, which is for [validation] only")

    def open(self) -> Mixture:
        """All datasets, opened. Raises what they raise, naming the dataset."""
        return Mixture(
            [s.open() for s in self.sources], [s.weight for s in self.sources], self.seed, self.mirror
        )


@dataclass(frozen=True)
class _Counts:
    """What [data] says besides its sources, as in `DataConfig`."""

    batch: int = 1
    seed: int = 0
    mirror: float = 0.5
    workers: int = 2

    def __post_init__(self) -> None:
        if self.batch < 1 or min(self.seed, self.workers) < 0 or not 0 <= self.mirror <= 1:
            raise ValueError(f"batch {self.batch}, seed {self.seed}, workers {self.workers}, mirror {self.mirror}; expected at "
                             "least 1, 0 and 0, and a probability")


def read_sources(tables: Any, where: str, table: str) -> tuple[WeightedSource, ...]:
    """The `[[data.source]]` or `[[validation.source]]` tables. Raises ValueError naming the file and what is
    wrong.
    """
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{where}: [{table}] has no [[{table}.source]]; expected at least one dataset")
    sources = []
    for number, entry in enumerate(tables):
        here = f"{where} [[{table}.source]] {number + 1}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{here} is {entry!r}; expected a table")
        entry = dict(entry)
        if table == "validation" and "weight" in entry:
            raise ValueError(f"{here}: weight is for [[data.source]]; [validation] pictures are divided evenly, leave it out")
        kind, weight = entry.pop("kind", None), entry.pop("weight", 1.0)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"{here}: kind is {kind!r}; expected one of {', '.join(_KINDS)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 2**63:
            raise ValueError(f"{here}: weight is {weight!r}; expected a number of at least 0")
        name = entry.pop("name", kind)
        if not isinstance(name, str) or "/" in name or not name:
            raise ValueError(f"{here}: name is {name!r}; expected a word without '/'")
        sources.append(WeightedSource(name, kind, float(weight), build_config(entry, _KINDS[kind][0], here)))
    return tuple(sources)


def data_config(raw: Mapping[str, Any], where: str) -> DataConfig:
    """A configuration file's `[data]` table. Raises ValueError naming the file and what is wrong."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: [data] is {raw!r}; expected a table")
    table = dict(raw)
    sources = read_sources(table.pop("source", None), where, "data")
    counts = build_config(table, _Counts, f"{where} [data]")
    try:
        return DataConfig(sources=sources, **asdict(counts))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def load_data_config(path: str) -> DataConfig:
    """The `[data]` table of a TOML file. Raises FileNotFoundError or ValueError."""
    raw = read_toml(path)
    if "data" not in raw:
        raise ValueError(f"{path}: there is no [data] table; train/data/settings.py shows one")
    return data_config(raw["data"], path)
