"""`train inspect`: lists bad files, notices mixed-up normals, draws a sheet."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from train.inspect import main
from train.scenes import render_scene

SIZE = (48, 64)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "set"
    root.mkdir()
    for seed in range(4):
        scene = render_scene(seed, *SIZE)
        cv2.imwrite(str(root / f"{seed}_rgb.png"), (scene.image.numpy()[..., ::-1] * 255).astype(np.uint8))
        np.save(root / f"{seed}_depth.npy", scene.depth.numpy())
        np.save(root / f"{seed}_normal.npy", scene.normal.numpy())
    focal = scene.intrinsics
    (root / "dataset.toml").write_text(
        'image = "{name}_rgb.png"\ndepth = "{name}_depth.npy"\nnormal = "{name}_normal.npy"\n'
        f'normal_convention = "OpenCV"\ncamera = [{float(focal[0, 0])}, {float(focal[1, 1])}, 0.5, 0.5]\n'
    )
    (tmp_path / "c.toml").write_text(
        f'[data]\nworkers = 2\n[[data.source]]\nkind = "folder"\nroot = "{root}"\nheight = 48\nwidth = 64\nweight = 0.5\n'
        '[[data.source]]\nkind = "procedural"\nheight = 32\nwidth = 48\nweight = 0.5\n'
    )
    return root


def run(folder: Path, *more: str) -> int:
    return main(
        ["--config", str(folder.parent / "c.toml"), "--output", str(folder.parent / "sheet.png"), *more]
    )


def test_a_good_dataset(folder, capsys):
    assert run(folder, "--samples", "3", "--all") == 0
    text = capsys.readouterr().out
    assert "folder: 4 pictures" in text
    assert "procedural: endless" in text
    assert "WARNING" not in text
    sheet = cv2.imread(str(folder.parent / "sheet.png"))
    assert sheet.shape[1] == 3 * (320 + 12)
    assert sheet.std() > 20
    assert not list(folder.parent.glob(".*.part"))


def test_bad_files_are_listed_and_the_rest_is_read(folder, capsys):
    (folder / "1_depth.npy").write_bytes(b"nothing")
    (folder / "2_rgb.png").write_bytes(b"")
    assert run(folder, "--all") == 1
    text = capsys.readouterr().out
    assert "read 2, left out by the dataset's rules 0, bad 2" in text
    assert "1_depth.npy" in text
    assert "2_rgb.png" in text


def test_normals_in_another_convention_are_noticed(folder, capsys):
    description = folder / "dataset.toml"
    description.write_text(description.read_text().replace('"OpenCV"', '"OpenGL"'))
    assert run(folder) == 0
    assert "WARNING: normals and depth disagree" in capsys.readouterr().out


def test_dry_run_reads_nothing(folder, capsys):
    (folder / "1_depth.npy").unlink()
    assert run(folder, "--dry-run") == 0
    assert "folder: 4 pictures, 48x64, 50% of the batches" in capsys.readouterr().out
    assert not (folder.parent / "sheet.png").exists()
