"""What a run leaves to be looked at: each step once, and nothing of it can end the run."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train.tiny_run import bases, configuration  # noqa: F401 - `bases` is a fixture
from train.console import RunConsole, pace, span
from train.engine import Finetuning
from train.journal import Journal, read_journal
from train.recipe import Training, ValidationConfig, WatchConfig
from train.trackers import Trackers
from train.watching import StepReport

REPORT = StepReport(3, 0.25, 0.5, -0.1, 1.5, 1e-4)


def test_a_journal_has_each_step_once_however_it_was_cut_off(tmp_path):
    path = tmp_path / "a" / "losses.jsonl"
    journal = Journal(path)
    for step in (1, 2, 3):
        journal.append({"step": step, "depth": step / 3})
    with path.open("ab") as file:
        file.write(b'{"step": 4, "dep')  # killed in the middle of a line
    assert [row["step"] for row in read_journal(path)] == [1, 2, 3]
    journal = Journal(path)
    journal.resume(2)
    journal.append({"step": 3, "depth": 1.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "depth": 1 / 3}, {"step": 2, "depth": 2 / 3}, {"step": 3, "depth": 1.0}]
    journal.resume(-1)
    assert path.read_text() == ""


def test_a_journal_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "losses.jsonl")
    journal.append({"step": 1})
    journal.append({"step": 2})
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text


def test_tensorboard_sees_each_step_once_and_the_sheets(bases, tmp_path):  # noqa: F811
    config = configuration(bases["whole"], tmp_path, watch=WatchConfig(),
                           training=Training(steps=3, warmup=0, save_every=1, learning_rate=3e-3),
                           validation=ValidationConfig(every=2, pictures=1))  # fmt: skip
    first = Finetuning(config, digest=False)
    first.run(until=2)
    lost = StepReport(3, 9.0, 9.0, 9.0, 9.0, 9.0)
    first.watch.stepped(lost)  # a step beyond its checkpoint, as a killed run leaves it
    first.close()
    second = Finetuning(config, digest=False)
    second.run()
    second.close()
    rows = read_journal(config.folder / "losses.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    seen = EventAccumulator(str(config.folder / "tensorboard"))
    seen.Reload()
    depth = {event.step: event.value for event in seen.Scalars("loss/depth")}
    assert depth == pytest.approx({row["step"]: row["depth"] for row in rows}, rel=1e-6)
    assert len(seen.Scalars("loss/depth")) == 3
    scores = read_journal(config.folder / "validation.jsonl")
    assert [event.step for event in seen.Scalars("validation/angle")] == [row["step"] for row in scores] == [0, 2, 3]
    (tag,) = seen.Tags()["images"]
    assert [event.step for event in seen.Images(tag)] == [0, 2, 3]


def test_a_tracker_that_breaks_is_left_out(tmp_path, caplog):
    trackers = Trackers(WatchConfig(), tmp_path, "run", -1, "{}")
    trackers.numbers({"a": 1.0}, 0)

    class Broken:
        name = "tensorboard"

        def log(self, *arguments: object, **more: object) -> None:
            raise RuntimeError("the service is gone")

    trackers._open.append(Broken())
    trackers.numbers({"a": 2.0}, 1)
    trackers.numbers({"a": 3.0}, 2)
    trackers.close()
    assert caplog.text.count("the service is gone") == 1
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [event.value for event in seen.Scalars("a")] == [1, 2, 3]


def test_wandb_that_is_asked_for_and_not_installed_is_named(bases, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = configuration(bases["whole"], tmp_path, watch=WatchConfig(False, "fe2e"))
    with pytest.raises(ValueError, match=r"\[watch\] wandb = 'fe2e' needs wandb.*pip install wandb"):
        Finetuning(config)


def test_wandb_takes_the_numbers_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for begin in (-1, 1):
        trackers = Trackers(WatchConfig(False, "fe2e"), tmp_path, "run", begin, '{"training": {"seed": 0}}')
        trackers.numbers({"loss/depth": 0.5}, begin + 1)
        ids.append(trackers._open[0].run.id)
        trackers.close()
    assert ids[0] == ids[1] == (tmp_path / "wandb.id").read_text()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_a_log_gets_plain_lines_with_rate_and_time_left(monkeypatch):
    moments = iter([100.0, 104.0, 105.0, 122.0])
    monkeypatch.setattr("train.console.time.monotonic", lambda: next(moments))
    out = io.StringIO()
    with RunConsole("run", 1, 4, Console(file=out)) as show:
        for step in (2, 3, 4):
            show(StepReport(step, 0.25, 0.5, -0.1, 1.5, 1e-4))
    assert out.getvalue().splitlines() == [
        "step 2/4: depth 0.2500, normals 0.5000, dispersive -0.1000, gradient 1.5, 4.00 s a step, 8 s left",
        "step 4/4: depth 0.2500, normals 0.5000, dispersive -0.1000, gradient 1.5, 7.33 s a step",
    ]


def test_a_terminal_gets_a_bar_and_log_lines_go_above_it():
    out = io.StringIO()
    stream, handler = sys.stderr, logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        with RunConsole("my run", 2, 4, Console(file=out, force_terminal=True, width=200)) as show:
            show(REPORT)
            logging.getLogger("train.test").error("a picture is broken")
            show(StepReport(4, 0.25, 0.5, -0.1, 1.5, 1e-4))
        assert handler.stream is stream
    finally:
        logging.getLogger().removeHandler(handler)
    text = out.getvalue()
    assert "my run" in text
    assert "4/4" in text
    assert "normals 0.5000" in text
    assert "a picture is broken" in text


def test_durations_as_people_say_them():
    assert [span(s) for s in (8, 75, 3725, 90000)] == ["8 s", "1 min 15 s", "1 h 2 min", "1 d 1 h"]
    assert (pace(2.5), pace(0.1)) == ("2.50 s a step", "10.0 steps a second")


def test_the_verb_trains_shows_and_resumes(bases, tmp_path, capsys, caplog):  # noqa: F811
    from train.__main__ import main

    path = tmp_path / "run.toml"
    path.write_text(_TOML.format(out=tmp_path, base=bases["whole"], cache=tmp_path / "cache"))
    assert main(["lora", "--config", str(path), "--dry-run"]) == 0
    assert "tiny: 2 steps of 1 pictures" in capsys.readouterr().out
    assert not (tmp_path / "tiny").exists()
    assert main(["lora", "--config", str(path)]) == 0
    text = capsys.readouterr().out
    assert "step 2/2: depth" in text
    assert f"LoRA written: {tmp_path / 'tiny' / 'tiny.safetensors'}" in text
    assert sorted(os.listdir(tmp_path / "tiny")) == [
        "best.safetensors", "losses.jsonl", "step-00000002.safetensors", "tensorboard", "tiny.safetensors",
        "tiny_best.safetensors", "validation", "validation.jsonl"]  # fmt: skip
    assert len([p for p in Path(tmp_path / "cache").rglob("*") if p.is_file()]) == 4


_TOML = """
name = "tiny"
out = "{out}"
[base]
checkpoint = "{base}"
[dispersive]
weight = 0
[lora]
rank = 4
[training]
steps = 2
ema = 0.9
[cache]
folder = "{cache}"
[watch]
tensorboard = true
[validation]
every = 1
pictures = 1
[data]
batch = 1
workers = 0
mirror = 0
[[data.source]]
kind = "procedural"
height = 32
width = 48
scenes = 4
"""
