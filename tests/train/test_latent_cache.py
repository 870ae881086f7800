"""The latent cache: the same losses bit for bit, nothing read twice, nothing stale, nothing broken."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.train.tiny_run import bases, configuration, trained  # noqa: F401 - `bases` is a fixture
from train import cache
from train.cache import CacheConfig, LatentCache
from train.data.folder import FolderConfig
from train.data.mixture import Draw
from train.data.settings import DataConfig, WeightedSource
from train.dispersive import DispersiveConfig
from train.engine import Finetuning
from train.recipe import Objective, Training
from train.scenes import render_scene


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three scenes as a folder of files."""
    root = tmp_path / "pictures"
    root.mkdir()
    for seed in range(3):
        scene = render_scene(seed, 32, 48)
        cv2.imwrite(str(root / f"{seed}.png"), (scene.image.numpy()[..., ::-1] * 255).astype(np.uint8))
        np.save(root / f"{seed}.npy", scene.depth.numpy())
    (root / "dataset.toml").write_text('image = "{name}.png"\ndepth = "{name}.npy"\nfov_x = 60.0\n')
    return root


def run(base: Path, pictures: Path, out: Path, folder: str, steps: int = 3, workers: int = 0, **changes) -> list:
    """The reports of a short run on the folder of pictures, every picture seen."""
    source = WeightedSource("set", "folder", 1.0, FolderConfig(str(pictures), 32, 48))
    config = configuration(base, out, cache=CacheConfig(folder), dispersive=DispersiveConfig(weight=0),
                           data=DataConfig((source,), batch=3, mirror=0, workers=workers),
                           training=Training(steps=steps, warmup=0, save_every=100), **changes)  # fmt: skip
    reports = []
    Finetuning(config, digest=False).run(reports.append)
    return reports


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_same_losses_and_nothing_is_read_twice(bases, pictures, tmp_path, caplog):  # noqa: F811
    folder, base = tmp_path / "cache", bases["whole"]
    without = run(base, pictures, tmp_path / "a", "")
    assert run(base, pictures, tmp_path / "b", str(folder)) == without
    kept = files(folder)
    assert len(kept) == 2 * 3
    assert all(path.suffix == ".safetensors" for path in kept)
    for path in (*pictures.glob("*.png"), *pictures.glob("*.npy")):  # the files as they were, but for what is in them
        about = path.stat()
        path.write_bytes(bytes(about.st_size))
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert run(base, pictures, tmp_path / "c", str(folder)) == without
    assert "replaced" not in caplog.text
    assert files(folder) == kept


def test_what_is_broken_is_made_again(bases, pictures, tmp_path, caplog):  # noqa: F811
    folder, base = tmp_path / "cache", bases["whole"]
    first = run(base, pictures, tmp_path / "a", str(folder), steps=1)
    kept = {path: path.read_bytes() for path in files(folder)}
    flipped, cut, empty, *_ = kept
    flipped.write_bytes(kept[flipped][:-5] + bytes([kept[flipped][-5] ^ 1]) + kept[flipped][-4:])
    cut.write_bytes(kept[cut][:1000])
    empty.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert run(base, pictures, tmp_path / "b", str(folder), steps=1) == first
    assert caplog.text.count("is broken") == 3
    assert {path: path.read_bytes() for path in files(folder)} == kept


def test_another_scheme_shares_all_but_the_depth(bases, pictures, tmp_path):  # noqa: F811
    folder, base = tmp_path / "cache", bases["whole"]
    run(base, pictures, tmp_path / "a", str(folder), steps=1)
    inverse = Objective(quantization="inverse")
    expected = run(base, pictures, tmp_path / "b", "", steps=1, objective=inverse)
    assert run(base, pictures, tmp_path / "c", str(folder), steps=1, objective=inverse) == expected
    assert len(files(folder)) == 3 + 2 * 3


def test_whatever_changes_a_picture_changes_its_place(pictures, monkeypatch):
    def places(draw: Draw, autoencoder: str = "a", scheme: str = "log", **settings) -> set[Path]:
        about = {"root": str(pictures), "height": 32, "width": 48} | settings
        source = WeightedSource("set", "folder", 1.0, FolderConfig(**about))
        return set(LatentCache("c", DataConfig((source,)).open(), autoencoder, scheme)._paths(draw))

    draw, seen = Draw(0, 0, False, 0, 0), set()

    def check_new(found: set[Path], new: int = 2) -> None:
        assert len(found - seen) == new
        seen.update(found)

    check_new(places(draw))
    check_new(places(Draw(0, 0, False, 5, 1)), 0)
    check_new(places(Draw(0, 1, False, 0, 0)))
    check_new(places(Draw(0, 0, True, 0, 0)))
    check_new(places(draw, autoencoder="b"))
    check_new(places(draw, scheme="sqrt"), 1)
    check_new(places(draw, height=48))
    os.utime(pictures / "0.npy", ns=(1, 1))
    check_new(places(draw))
    (pictures / "dataset.toml").write_text('image = "{name}.png"\ndepth = "{name}.npy"\nfov_x = 61.0\n')
    check_new(places(draw))
    monkeypatch.setattr(cache, "source_digest", lambda: "another reader")
    check_new(places(draw))


def test_workers_find_what_was_kept_and_a_full_disk_is_survived(bases, pictures, tmp_path, monkeypatch, caplog):  # noqa: F811
    folder, base = tmp_path / "cache", bases["whole"]

    def full(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(cache, "write_tensors", full)
        expected = run(base, pictures, tmp_path / "a", str(folder), steps=1)
    assert "nothing more is kept (no space left)" in caplog.text
    assert files(folder) == []
    assert run(base, pictures, tmp_path / "b", str(folder), steps=1) == expected
    (pictures / "0.png").rename(pictures / "kept.png")
    (pictures / "kept.png").rename(pictures / "0.png")
    assert run(base, pictures, tmp_path / "c", str(folder), steps=1, workers=1) == expected
