"""benchmarks/quantization.py: what it measures against what can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import quantization
from fe2e_core.quantization import error_table


def test_measured_errors_are_what_the_numbers_around_allow() -> None:
    step = 1 / 256
    # uniform: numbers stand 15.625 cm apart at both ends; 0.1 m lies between 0 and one of them
    assert quantization.worst_error("uniform", 0.1, "nearest").error == pytest.approx(0.15625 - 0.1, abs=1e-6)
    assert quantization.worst_error("uniform", 80.0, "nearest").error == pytest.approx(0.15625 / 2, rel=1e-3)
    assert quantization.worst_error("uniform", 80.0, "truncate").error == pytest.approx(0.15625, rel=1e-3)
    # inverse: below 80 m the next number stands for 1 / (1/80 + (10 - 1/80) step / 2)
    below = 1 / (1 / 80 + (10 - 1 / 80) * step / 2)
    assert quantization.worst_error("inverse", 80.0, "truncate").error == pytest.approx(80 - below, rel=1e-3)
    assert quantization.worst_error("inverse", 80.0, "nearest").abs_rel == pytest.approx(0.05, abs=1e-4)
    # log: one step is a factor
    factor = math.exp(math.log(800) * step / 2)
    for depth in (0.1, 80.0):
        found = quantization.worst_error("log", depth, "truncate").abs_rel
        assert found == pytest.approx(1 - 1 / factor if depth == 80 else factor - 1, rel=5e-3)
        assert quantization.worst_error("log", depth, "nearest").abs_rel == pytest.approx(found / 2, rel=2e-2)


def test_the_table_stands_beside_the_papers() -> None:
    rows = {row[0]: row[1:] for row in quantization.paper_table().rows}
    assert rows["uniform, 0.1 m"][:4] == ["16 cm", "1.600", "15.62 cm", "1.56250"]
    assert rows["inverse, 80 m"][:4] == ["125 m", "1.563", "124.84 m", "1.56055"]
    assert rows["log, 80 m"][:4] == ["1.04 m", "0.013", "1.04 m", "0.01306"]
    # the paper's digits are the recomputed ones, rounded, but for the two that it computed from rounded metres
    for row in error_table():
        printed = quantization.PRINTED.get((row.scheme, row.depth))
        if printed:
            slack = 0.0006 if (row.scheme, row.depth) not in (("uniform", 0.1), ("inverse", 80.0)) else 0.04
            assert float(printed[1]) == pytest.approx(row.abs_rel, abs=slack)


def test_39_and_78_metres() -> None:
    rows = {row[0]: row[1:] for row in quantization.pair_table().rows}
    assert rows["truncate"][0] == rows["truncate"][1] and rows["truncate"][2:] == ["31.24 m", "31.24 m"]
    assert rows["nearest"][2:] == ["31.24 m", "80.00 m"]


def test_the_street_covers_the_range() -> None:
    depth, mask = quantization.street(120, 200)
    assert 0.14 < float(depth[mask].min()) < 0.2 and 60 < float(depth[mask].max()) <= 80
    assert 0.5 < float(mask.double().mean()) < 1
    rows = {row[0]: row[1:] for row in quantization.scene_table(depth, mask).rows}
    log, uniform = float(rows["log, 0.1 to 80 m"][0]), float(rows["uniform, 0.1 to 80 m"][0])
    assert log < 1.32 and uniform > 5 * log
    assert all(row[1] == "0.00" for name, row in rows.items() if name.startswith("log"))


def test_the_document_is_replaced_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "q.md"
    monkeypatch.setattr(quantization, "DOCUMENT", document)
    monkeypatch.setattr(quantization, "PICTURE", tmp_path / "q.png")
    monkeypatch.setattr(quantization, "figure", lambda: torch.zeros(4, 6, 3))
    document.write_text("before\n<!-- begin tables -->\nold\n<!-- end tables -->\nafter\n")
    quantization.write("new")
    quantization.write("newer")
    assert document.read_text() == "before\n<!-- begin tables -->\nnewer\n<!-- end tables -->\nafter\n"
    assert (tmp_path / "q.png").stat().st_size > 0
    document.write_text("no marks")
    with pytest.raises(ValueError, match="begin tables"):
        quantization.write("x")
