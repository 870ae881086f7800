"""`python -m train evaluate` of checkpoints whose labels are not logarithms, or that were trained on depth alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from fe2e_core.checkpoint import NO_NORMALS, OTHER_LABELS
from fe2e_core.tensorfile import TensorFile, write_tensors
from tests.train.bench_archives import SIZES, write_depth_archive, write_normal_archive
from train.__main__ import main

NORMALS = ("nyuv2-normal", "scannet-normal", "ibims", "sintel")
NANO = Path(__file__).resolve().parents[2] / "models" / "fe2e-nano.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DIODE archive of two slopes, and normals of a wall."""
    folder = tmp_path_factory.mktemp("data")
    write_depth_archive(folder, "diode", [np.tile(np.linspace(2, 9, width), (height, 1)) for height, width in SIZES["diode"]])
    walls = {key: [np.tile(np.array([0.0, 0.0, 1.0]), (*size, 1)) for size in SIZES[key]] for key in NORMALS}
    write_normal_archive(folder, walls)
    return folder


def labelled(folder: Path, **notes: str) -> Path:
    """The embedded model, saying something else of its training."""
    path = folder / "labelled.safetensors"
    with TensorFile(NANO) as file:
        write_tensors(path, file, {**file.metadata, **notes})
    return path


def evaluate(data: Path, out: Path, checkpoint: Path, *more: str, only: str = "diode") -> int:
    return main(["evaluate", "--data", str(data), "--out", str(out), "--checkpoint", str(checkpoint), "--cpu", "--size", "trained",
                 "--limit", "1", "--benchmarks", *only.split(), *more])  # fmt: skip


def aligned_by(out: Path) -> list[str]:
    return list(json.loads((out / "summary.json").read_text())["benchmarks"]["diode"]["means"])


@pytest.mark.parametrize(("scheme", "alignments"), [
    ("log", ["log", "linear"]), ("uniform", ["linear"]), ("inverse", ["disparity"]), ("sqrt", ["sqrt"]),
])  # fmt: skip
def test_the_labels_choose_the_alignment(data, tmp_path, caplog, scheme, alignments):
    checkpoint = labelled(tmp_path, quantization=scheme)
    with caplog.at_level(logging.INFO):
        assert evaluate(data, tmp_path / "out", checkpoint) == 0
    assert aligned_by(tmp_path / "out") == alignments
    assert f"labels of the scheme '{scheme}', aligned by {', '.join(alignments)}" in caplog.text
    assert (OTHER_LABELS.get(scheme, "no sentence") in caplog.text) == (scheme != "log")


def test_another_alignment_is_taken_and_warned_of(data, tmp_path, caplog, capsys):
    checkpoint = labelled(tmp_path, quantization="inverse")
    assert evaluate(data, tmp_path / "out", checkpoint, "--alignments", "log") == 0
    assert aligned_by(tmp_path / "out") == ["log"]
    assert "its labels ask for --alignments disparity" in caplog.text
    capsys.readouterr()
    assert evaluate(data, tmp_path / "other", checkpoint, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "near and far are swapped" in said
    assert "depth aligned by disparity" in said
    assert not (tmp_path / "other").exists()


def test_pack_and_predict_say_it(tmp_path, capsys):
    checkpoint, again = labelled(tmp_path, quantization="inverse"), tmp_path / "again.safetensors"
    assert main(["pack", "--checkpoint", str(checkpoint), "--out", str(again), "--dtype", "as-stored", "--no-digests"]) == 0
    assert "near and far are swapped" in capsys.readouterr().out
    assert main(["predict", str(again), str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "near and far are swapped" in capsys.readouterr().out


def test_normals_that_were_not_trained_are_not_scored(data, tmp_path, caplog, capsys):
    checkpoint, out = labelled(tmp_path, notice=NO_NORMALS), tmp_path / "out"
    out.mkdir()  # with what was scored before such normals were left out
    (out / "summary.json").write_text(json.dumps({"benchmarks": {"sintel": {}}}))
    with caplog.at_level(logging.INFO):
        assert evaluate(data, out, checkpoint, only="diode ibims sintel") == 0
    assert NO_NORMALS in caplog.text
    assert "left out: ibims, trained on depth alone; sintel, trained on depth alone" in caplog.text
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["benchmarks"]) == ["diode"]
    assert list(summary["skipped"]) == ["ibims", "sintel"]
    table = (out / "tables.md").read_text(encoding="utf-8").partition("Table 3")[2]
    assert "| **labelled**, not scored: trained on depth alone | - | - |" in table
    capsys.readouterr()
    assert evaluate(data, tmp_path / "other", checkpoint, "--dry-run", only="diode ibims") == 0
    assert "ibims: left out, trained on depth alone" in capsys.readouterr().out
    assert evaluate(data, tmp_path / "other", checkpoint, only="normal") == 2
    assert "was trained on depth alone, and only benchmarks of normals are to be scored" in capsys.readouterr().err


def test_normals_that_were_trained_are_scored(data, tmp_path):
    assert evaluate(data, tmp_path, NANO, only="ibims") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["benchmarks"]) == ["ibims"]
    assert summary["skipped"] == {}
    assert "not scored" not in (tmp_path / "tables.md").read_text(encoding="utf-8")
