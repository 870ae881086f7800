"""`train curves`: what it draws is what the journals say."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from train.__main__ import main
from train.curves import smoothed
from train.plot import COLOURS, ticks


@pytest.fixture
def runs(tmp_path):
    """Two runs: one falls to 0.2, the other, half as long, to 0.6; and the scores of the first."""
    for name, steps, floor in (("editor", 40, 0.2), ("generator", 20, 0.6)):
        (tmp_path / name).mkdir()
        rows = [{"step": s, "depth": floor / 2 + math.exp(-s / 5), "normal": floor / 2, "dispersive": -0.5} for s in range(1, steps + 1)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "losses.jsonl").write_text(text + '{"step": 41, "dep')
    scores = [{"step": step, "abs_rel": 0.4 - step / 400} for step in (0, 20, 40)]
    (tmp_path / "editor" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    return tmp_path


def curves(runs, *arguments: str) -> int:
    return main(["curves", *arguments, "--output", str(runs / "c.png")])


def coloured(picture: np.ndarray, colour: str) -> np.ndarray:
    """Rows of the pixels of one colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.nonzero((np.abs(picture.astype(int) - wanted) < 40).all(-1))


def test_table_and_picture_say_what_the_runs_say(runs, capsys):
    assert curves(runs, str(runs / "editor"), str(runs / "generator"), "--smooth", "0", "--begin", "10") == 0
    assert "editor: 40 steps, loss 0.2003 at step 40" in capsys.readouterr().out
    with (runs / "c.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == list(range(1, 41))
    assert float(table[4]["editor"]) == pytest.approx(0.2 + math.exp(-1))
    assert table[20]["generator"] == ""
    picture = np.asarray(Image.open(runs / "c.png"))
    assert picture.shape == (620, 1000, 3)
    rows, columns = coloured(picture[46:, 310:], COLOURS[0])  # below the legend
    others, shorter = coloured(picture[46:, 310:], COLOURS[1])
    assert others.max() < rows.min(), "0.6 lies above 0.4"
    assert shorter.max() + 310 == pytest.approx(84 + 892 / 3, abs=4), "the second run ends at a third of the plot"
    assert columns.max() + 310 > 960
    assert not list(runs.glob(".*.part"))


def test_inset_scores_names_and_logarithms(runs):
    editor = str(runs / "editor")
    assert curves(runs, editor, "--inset", "10", "--names", "the editor", "--smooth", "0.5") == 0
    assert next(csv.reader((runs / "c.csv").open())) == ["step", "the editor", "the editor (smoothed)"]
    rows, columns = coloured(np.asarray(Image.open(runs / "c.png"))[60:200, 620:], COLOURS[0])
    assert len(rows) > 50, "the beginning is in the corner"
    assert curves(runs, editor, "--of", "abs_rel", "--log") == 0
    table = csv.DictReader((runs / "c.csv").open())
    assert [float(row["editor"]) for row in table] == pytest.approx([0.4, 0.35, 0.3])


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere"], "there is no 'nowhere'; expected the folder of a run"),
    (["{generator}", "--of", "angle"], "validation.jsonl"),
    (["{generator}", "--of", "gradient"], "has no 'gradient'; its rows have step, depth, normal, dispersive"),
    (["{generator}", "--names", "a", "b"], "expected one for each of 1 runs"),
    (["{generator}", "--begin", "500"], "nothing to draw between the steps 500 and inf"),
    (["{generator}", "--smooth", "1"], "expected a weight of at least 0 and below 1"),
])  # fmt: skip
def test_what_is_wrong_is_named(runs, capsys, arguments, message):
    arguments = [a.replace("{generator}", str(runs / "generator")) for a in arguments]
    assert curves(runs, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (runs / "c.png").exists()


def test_smoothing_is_an_unbiased_average_and_passes_over_gaps():
    y = np.array([4.0, math.nan, 1.0])
    np.testing.assert_allclose(smoothed(y, 0.5), [4, 4, (4 * 0.25 + 1 * 0.5) / 0.75])
    np.testing.assert_allclose(smoothed(np.full(50, 3.0), 0.98), 3)
    assert smoothed(y, 0)[2] == 1


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 10, [0, 2, 4, 6, 8, 10]), (0.071, 0.083, [0.072, 0.074, 0.076, 0.078, 0.08, 0.082]),
                                                       (-2, 1, [-2, -1.5, -1, -0.5, 0, 0.5, 1])])  # fmt: skip
def test_ticks_are_round_numbers(low, high, expected):
    np.testing.assert_allclose(ticks(low, high), expected, atol=1e-12)
