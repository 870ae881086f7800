"""What of a configuration may change while a run goes on: how long it trains, where the rate does not depend on it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fe2e_core.tensorfile import TensorFile, write_tensors
from tests.train.tiny_run import bases, configuration  # noqa: F401 - `bases` is a fixture
from train.dispersive import DispersiveConfig
from train.engine import Finetuning
from train.recipe import FinetuneConfig, Training, load_recipe
from train.run_state import checkpoints


def longer(schedule: str, **lengths: float) -> FinetuneConfig:
    return configuration("base", "out", training=Training(schedule=schedule, **lengths))


@pytest.mark.parametrize(("schedule", "before", "after", "same"), [
    ("constant", {"epochs": 2}, {"epochs": 3}, True),
    ("constant", {"steps": 20}, {"steps": 30}, True),
    ("constant", {"epochs": 2}, {"steps": 30}, True),
    ("cosine", {"epochs": 2}, {"epochs": 3}, False),
    ("cosine", {"steps": 20}, {"steps": 30}, False),
    ("cosine", {"epochs": 2}, {"steps": 30}, False),
    ("cosine", {"steps": 20, "epochs": 2}, {"steps": 20, "epochs": 3}, True),
])  # fmt: skip
def test_the_end_may_change_where_the_rate_does_not_depend_on_it(schedule, before, after, same):
    assert (longer(schedule, **before).identity() == longer(schedule, **after).identity()) == same


def test_a_cosine_over_epochs_goes_on_only_to_the_same_end(bases, tmp_path):  # noqa: F811
    training = Training(epochs=1, schedule="cosine", warmup=0, learning_rate=3e-3, save_every=1)
    config = configuration(bases["whole"], tmp_path, training=training, dispersive=DispersiveConfig(weight=0))
    Finetuning(config).run(until=2)
    with pytest.raises(ValueError, match=r"training\.epochs was 1 and is 2\); restore the configuration"):
        Finetuning(dataclasses.replace(config, training=dataclasses.replace(training, epochs=2)))
    # as an earlier version wrote it: without the epochs
    path = checkpoints(config.folder)[-1]
    with TensorFile(path) as file:
        tensors, metadata = {key: file[key].clone() for key in file}, dict(file.metadata)
    identity = json.loads(metadata["identity"])
    del identity["training"]["epochs"]
    write_tensors(path, tensors, metadata | {"identity": json.dumps(identity, sort_keys=True)})
    assert Finetuning(config).step == 2


def test_a_weight_in_validation_is_refused(tmp_path):
    path = tmp_path / "c.toml"
    text = (
        'name = "x"\n[base]\ncheckpoint = "a.safetensors"\n[data]\n[[data.source]]\nkind = "procedural"\nweight = 0.5\n'
        '[validation]\nevery = 5\n[[validation.source]]\nkind = "procedural"\nheld_out = true\n'
    )
    path.write_text(text)
    assert len(load_recipe(str(path)).validation.sources) == 1
    path.write_text(text + "weight = 0.5\n")
    with pytest.raises(ValueError, match=r"c\.toml \[\[validation\.source\]\] 1: weight is for \[\[data\.source\]\]"):
        load_recipe(str(path))
