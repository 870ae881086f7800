"""Configuration files: runs of the embedded model, fine-tuning recipes, data tables."""

from __future__ import annotations

from pathlib import Path

from tools.comfyui import ROOT
from tools.fuzz.targets import Target, require
from train.config import NanoConfig, load_config
from train.data.settings import load_data_config
from train.recipe import load_recipe

_CONFIGS = ROOT / "train" / "configs"
_DATA = """[data]
batch = 4
seed = 0
mirror = 0.5
workers = 0

[[data.source]]
kind = "folder"
name = "mine"
weight = 0.9
root = "here"
height = 48
width = 64

[[data.source]]
kind = "procedural"
weight = 1
height = 48
width = 64
"""


def _copy(*names: str):
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes((_CONFIGS / name).read_bytes())

    return write


def _write_data(folder: Path) -> None:
    (folder / "data.toml").write_text(_DATA)


def _read_nano(path: Path) -> None:
    config = load_config(path, NanoConfig)
    require(isinstance(config.pool.scenes, int) and isinstance(config.work, str), "values of the declared types")


def _read_recipe(path: Path) -> None:
    recipe = load_recipe(str(path))
    require(bool(recipe.identity()) and recipe.lora.rank >= 1, "a run that can name itself")


def _read_data(path: Path) -> None:
    config = load_data_config(str(path))
    require(config.batch >= 1 and 0 <= config.mirror <= 1 and config.workers >= 0, "counts that a run can use")


TARGETS = (
    Target("nano config", _copy("nano.toml"), _read_nano, ("nano.toml",)),
    Target("recipe", _copy("fe2e.toml", "table5_dispersive.toml"), _read_recipe, ("fe2e.toml", "table5_dispersive.toml")),
    Target("data config", _write_data, _read_data, ("data.toml",)),
)
