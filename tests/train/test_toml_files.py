"""Configuration files that are broken or lie are refused by name, whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from train.config import NanoConfig, load_config
from train.data.folder import Folder, FolderConfig
from train.data.frame import BadFrame
from train.data.settings import load_data_config
from train.recipe import load_recipe
from train.typed_toml import read_toml

GOOD = '[data]\nbatch = 2\n[[data.source]]\nkind = "procedural"\nheight = 48\nwidth = 64\n'
BROKEN = {"no UTF-8": b"a = '\xff'", "no TOML": b"a = = 1", "brackets without end": b"a = " + b"[" * 5000,
          "a number without end": b"a = " + b"9" * 5000, "nothing": b"\x00"}  # fmt: skip


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("read", [load_data_config, load_recipe, lambda path: load_config(path, NanoConfig)])
def test_a_broken_file_is_named(tmp_path: Path, data: bytes, read) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"mine\.toml: "):
        read(str(path))
    with pytest.raises(FileNotFoundError, match="other"):
        read(str(tmp_path / "other.toml"))


@pytest.mark.parametrize(
    "line",
    ["batch = 0", "batch = 1.5", "mirror = nan", "mirror = 2", "workers = -1", "seed = 9999999999999999999999", "batch = []",
     f"mirror = {'9' * 400}", f"seed = 0x{'f' * 5000}", f"batch = [0x{'f' * 5000}]"],
    ids=lambda line: line[:30],
)
def test_numbers_that_no_run_can_use_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("batch = 2", line))
    with pytest.raises(ValueError, match=rf"mine\.toml.*\[data\].*{line.split()[0]}"):
        load_data_config(str(path))


@pytest.mark.parametrize("text", ["data = 3", "[data]\nsource = [3]", "[[data.source]]\nkind = []", "[[data.source]]\nkind = "
                                  '"procedural"\nweight = inf'])  # fmt: skip
def test_tables_of_another_kind_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.toml"):
        load_data_config(str(path))


@pytest.mark.parametrize("value", ["/{name}.png", "/etc/{name}", "a\\u0000{name}"])
def test_pictures_are_looked_for_below_the_dataset(tmp_path: Path, value: str) -> None:
    (tmp_path / "dataset.toml").write_text(f'image = "{value}"\ndepth = "d/{{name}}.png"\nfov_x = 60.0\n')
    with pytest.raises(ValueError, match=r"dataset\.toml: image"):
        Folder(FolderConfig(str(tmp_path), 48, 64), "mine")


def test_paths_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    """Empty ones, and names longer than any disk allows: found by tools.fuzz."""
    long = "d" * 300
    Image.new("RGB", (64, 48)).save(tmp_path / "1.png")

    def folder(image: str, depth: str) -> Folder:
        (tmp_path / "dataset.toml").write_text(f'image = "{image}"\ndepth = "{depth}"\nfov_x = 60.0\n')
        return Folder(FolderConfig(str(tmp_path), 48, 64), "mine")

    for image, depth in (("{name}.png", ""), ("", "{name}.png")):
        with pytest.raises(ValueError, match=r"dataset\.toml: (image|depth) = ''"):
            folder(image, depth)
    with pytest.raises((ValueError, FileNotFoundError), match=r"dataset\.toml: image|no picture matches"):
        folder(f"{long}/{{name}}.png", "{name}.png")
    for suffix in ("png", "exr"):
        with pytest.raises(BadFrame, match=f"{long}1.{suffix}: "):
            folder("{name}.png", f"{long}{{name}}.{suffix}").read(0)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "größe 深度.toml"
    path.write_text('a = "é"\n[b]\nc = 1.5\n', encoding="utf-8")
    assert read_toml(path) == {"a": "é", "b": {"c": 1.5}}
