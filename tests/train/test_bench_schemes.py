"""`python -m train evaluate` of checkpoints whose labels are not logarithms, or that were trained on depth alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from fe2e_core.checkpoint import OTHER_LABELS
from fe2e_core.tensorfile import TensorFile, write_tensors
from tests.train.bench_archives import SIZES, write_depth_archive
from train.__main__ import main

NANO = Path(__file__).resolve().parents[2] / "models" / "fe2e-nano.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DIODE archive of two slopes."""
    folder = tmp_path_factory.mktemp("data")
    write_depth_archive(folder, "diode", [np.tile(np.linspace(2, 9, width), (height, 1)) for height, width in SIZES["diode"]])
    return folder


def labelled(folder: Path, **notes: str) -> Path:
    """The embedded model, saying something else of its training."""
    path = folder / "labelled.safetensors"
    with TensorFile(NANO) as file:
        write_tensors(path, file, {**file.metadata, **notes})
    return path


def evaluate(data: Path, out: Path, checkpoint: Path, *more: str) -> int:
    return main(["evaluate", "--data", str(data), "--out", str(out), "--checkpoint", str(checkpoint), "--cpu", "--size", "trained",
                 "--limit", "1", *more])  # fmt: skip


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
