"""Validation while training: what it measures, that it changes nothing, and that the best is kept."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from fe2e_core.quantization import SCHEMES, encode, percentile_range
from fe2e_core.tensorfile import TensorFile
from tests.train.tiny_run import bases, configuration, trained  # noqa: F401 - `bases` is a fixture
from train.data.fixed_set import FixedSet
from train.data.folder import Folder, FolderConfig
from train.data.frame import BadFrame, Frame
from train.data.procedural import Procedural, ProceduralConfig
from train.data.settings import DataConfig, WeightedSource
from train.engine import Finetuning
from train.journal import read_journal
from train.recipe import Training, ValidationConfig, load_recipe
from train.scenes import HELD_OUT
from train.validation import Scores, aligned_depth, score

FRAME = Procedural(ProceduralConfig(48, 64, held_out=True)).read(1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_perfect_label_scores_nothing_and_a_wrong_one_something(scheme):
    label = encode(torch.where(FRAME.valid, FRAME.depth, 1.0), percentile_range(FRAME.depth, FRAME.valid, scheme), bf16=None)
    perfect = score(aligned_depth(label, FRAME, scheme), FRAME.normal, FRAME)
    assert perfect.abs_rel < 1e-4
    assert perfect.delta1 == 1
    assert perfect.angle < 1e-3
    turned = torch.stack([FRAME.normal[..., 1], -FRAME.normal[..., 0], FRAME.normal[..., 2]], dim=-1)
    wrong = score(aligned_depth(label.flip(0), FRAME, scheme), turned, FRAME)
    assert wrong.abs_rel > 0.1
    assert wrong.delta1 < 0.9
    assert wrong.angle > 10
    constant = score(aligned_depth(torch.full_like(label, -1.0), FRAME, scheme), None, FRAME)
    assert math.isfinite(constant.abs_rel)
    assert math.isnan(constant.angle)
    assert "angle" not in constant.as_row()


def test_better_is_less_or_more_and_never_not_a_number():
    a, b, none = Scores(0.1, 0.9, 20.0), Scores(0.2, 0.95, math.nan), Scores(math.nan, math.nan, math.nan)
    assert a.better_than(b, "abs_rel")
    assert b.better_than(a, "delta1")
    assert a.better_than(b, "angle")
    assert not b.better_than(a, "angle")
    assert not a.better_than(a, "abs_rel")
    assert a.better_than(None, "abs_rel")
    assert not none.better_than(None, "abs_rel")


class Numbers:
    """A dataset of `length` frames, the index in their name, some of them unreadable."""

    def __init__(self, name: str, length: int | None, bad: frozenset[int] = frozenset()):
        self.name, self.length, self.size, self.bad = name, length, FRAME.size, bad

    def files(self, index: int) -> list[str]:
        return []

    def read(self, index: int) -> Frame:
        if index in self.bad:
            raise BadFrame(f"{self.name}/{index}: broken")
        return dataclasses.replace(FRAME, name=f"{self.name}/{index}")


def test_the_set_is_the_same_each_time_and_bad_pictures_are_replaced(caplog):
    def names(bad: frozenset[int] = frozenset()) -> list[str]:
        fixed = FixedSet([Numbers("indoor", 40, bad), Numbers("street", None)], 7)
        return [fixed[place].name for place in range(len(fixed))]

    whole = names()
    assert whole == names()
    assert [name.partition("/")[0] for name in whole] == ["indoor"] * 4 + ["street"] * 3
    assert len(set(whole)) == 7
    lost = int(whole[1].partition("/")[2])
    with caplog.at_level(logging.WARNING):
        replaced = names(frozenset([lost]))
    assert f"indoor/{lost}: broken" in caplog.text
    assert [a == b for a, b in zip(whole, replaced, strict=True)] == [True, False] + [True] * 5
    assert len(set(replaced)) == 7
    assert len(FixedSet([Numbers("few", 2)], 5)) == 2
    with pytest.raises(BadFrame, match="no picture of 'gone' for place 1 can be used"):
        FixedSet([Numbers("gone", 4, frozenset(range(4)))], 2)[0]


def test_validation_scenes_are_never_trained_on():
    assert int(FRAME.name.partition("/")[2]) > HELD_OUT
    source = WeightedSource("scenes", "procedural", 1.0, ProceduralConfig(32, 48, held_out=True))
    with pytest.raises(ValueError, match="'scenes' is held_out"):
        DataConfig((source,))


def test_validation_changes_nothing_and_keeps_the_best(bases, tmp_path):  # noqa: F811
    training = Training(steps=7, warmup=0, learning_rate=2e-2, save_every=2, keep=1)

    def run(out: str, every: int, until: int | None = None) -> Finetuning:
        config = configuration(bases["whole"], tmp_path / out, training=training,
                               validation=ValidationConfig(every=every, pictures=3, drawn=2))  # fmt: skip
        finetuning = Finetuning(config)
        finetuning.run(until=until)
        return finetuning

    plain, watched = run("a", 0), run("b", 2)
    assert all(torch.equal(tensor, trained(watched)[name]) for name, tensor in trained(plain).items())
    folder = watched.config.folder
    rows = read_journal(folder / "validation.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 7]
    assert all(row.keys() == {"step", "abs_rel", "delta1", "angle"} for row in rows)
    best = min(rows[1:], key=lambda row: row["abs_rel"])
    assert watched.best == Scores(**{key: value for key, value in best.items() if key != "step"})
    with TensorFile(folder / "best.safetensors") as file:
        assert int(file.metadata["step"]) == best["step"]
        kept = {key: file[key] for key in file if key.startswith("trained.")}
    with TensorFile(folder / "run_best.safetensors") as file:
        assert file.metadata["ss_steps"] == str(best["step"])
    with Image.open(folder / "validation" / f"step-{7:08d}.png") as sheet:
        assert sheet.size == (5 * (240 + 12), 2 * (160 + 12))
    assert len(list((folder / "validation").iterdir())) == 5

    # the weights of that step, as a run has them that ends there; and remembered exactly by one that goes on
    short = run("c", 2, until=best["step"])
    assert all(torch.equal(kept[f"trained.{name}"], tensor) for name, tensor in trained(short).items())
    again = Finetuning(watched.config)
    assert again.best == watched.best
    before = (folder / "best.safetensors").stat().st_mtime_ns
    again.run()
    assert (folder / "best.safetensors").stat().st_mtime_ns == before
    other = dataclasses.replace(watched.config, validation=ValidationConfig(every=2, pictures=2))
    assert Finetuning(other).best is None, "the best of another set says nothing here"


def test_the_tables_of_a_file(tmp_path):
    text = (
        'name = "a"\n[base]\ncheckpoint = "b"\n[objective]\njoint = false\n[data]\n[[data.source]]\nkind = "procedural"\n'
        '[validation]\nevery = 50\nmetric = "{metric}"\n[[validation.source]]\nkind = "procedural"\nheld_out = true\nscenes = 9\n'
    )
    path = tmp_path / "c.toml"
    path.write_text(text.replace("{metric}", "delta1"))
    config = load_recipe(str(path))
    assert (config.validation.every, config.validation.metric) == (50, "delta1")
    assert config.validation.sources[0].config == ProceduralConfig(held_out=True, scenes=9)
    silent = dataclasses.replace(config, validation=ValidationConfig())
    assert silent.identity() == config.identity(), "validation may change while a run goes on"
    for wrong, message in (("angle", "needs normals"), ("psnr", r"\[validation\]: metric is 'psnr'")):
        path.write_text(text.replace("{metric}", wrong))
        with pytest.raises(ValueError, match=message):
            load_recipe(str(path))
    path.write_text(text.replace("{metric}", "delta1").replace('kind = "procedural"\nheld_out', "held_out"))
    with pytest.raises(ValueError, match=r"\[\[validation\.source\]\] 1: kind is None"):
        load_recipe(str(path))


def test_a_folder_validates_as_well(tmp_path):
    import cv2
    import numpy as np

    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), (FRAME.image.numpy()[..., ::-1] * 255).astype(np.uint8))
        np.save(tmp_path / f"{number}.npy", FRAME.depth.numpy())
    (tmp_path / "dataset.toml").write_text('image = "{name}.png"\ndepth = "{name}.npy"\nfov_x = 60.0\n')
    fixed = FixedSet([Folder(FolderConfig(str(Path(tmp_path)), 48, 64))], 2)
    assert len(fixed) == 2
    assert torch.equal(fixed[0].valid, FRAME.valid)
