"""Folded constants in training: the base's own numbers, which nothing but a gradient may move."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fe2e_core.folding import CONSTANT
from tests.train.tiny_run import bases, configuration, trained  # noqa: F401 - `bases` is a fixture
from train.adapter import trained_modules
from train.engine import Finetuning
from train.low_bit import make_optimizer
from train.recipe import FinetuneConfig, LoraShape, Training


def folded(base: Path, out: Path, optimizer: str = "adamw") -> FinetuneConfig:
    training = Training(steps=3, warmup=0, learning_rate=1e-2, save_every=1, weight_decay=0.1, optimizer=optimizer)
    return configuration(base, out, lora=LoraShape(rank=2, alpha=2.0, constants=True), training=training)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_without_a_gradient_constants_stay_to_the_bit_and_are_not_exported(bases, tmp_path, optimizer):  # noqa: F811
    run = Finetuning(folded(bases["folded"], tmp_path, optimizer))
    before = trained(run)
    for _ in range(20):
        for _, parameter in run.trained:
            parameter.grad = torch.zeros_like(parameter)
        run.optimizer.step()
    constants = [name for name in before if name.endswith("." + CONSTANT)]
    assert len(constants) == 4
    after = trained(run)
    assert [name for name in constants if not torch.equal(after[name], before[name])] == []
    assert not any(lora.diff_b is not None for lora in trained_modules(run.base, run.config.lora).values())
    factors = [name for name in before if ".lora_A." in name]
    for name in factors:  # decayed as before: 20 steps of 1e-2 * 0.1
        torch.testing.assert_close(after[name], before[name] * 0.999**20, rtol=1e-5, atol=0)


def test_a_run_that_was_begun_with_one_group_goes_on(bases, tmp_path, monkeypatch):  # noqa: F811
    """The optimizer's state is stored by the names of what is trained: how they are grouped is not in it."""
    from train import engine

    def one_group(name, named, learning_rate, weight_decay):
        return torch.optim.AdamW([p for _, p in named], lr=learning_rate, weight_decay=weight_decay)

    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "make_optimizer", one_group)
        first = Finetuning(folded(bases["folded"], tmp_path))
        first.run(until=2)
        assert len(first.optimizer.param_groups) == 1
    second = Finetuning(folded(bases["folded"], tmp_path))
    assert second.step == 2
    assert [group["weight_decay"] for group in second.optimizer.param_groups] == [0.1, 0.0]
    for (name, mine), (_, theirs) in zip(second.trained, first.trained, strict=True):
        stored, found = first.optimizer.state[theirs], second.optimizer.state[mine]
        assert stored.keys() == found.keys() == {"step", "exp_avg", "exp_avg_sq"}, name
        assert all(torch.equal(stored[key], found[key]) for key in stored), name
    second.run()
    assert second.step == 3


def test_a_lora_alone_has_one_group(bases, tmp_path):  # noqa: F811
    run = Finetuning(dataclasses.replace(folded(bases["folded"], tmp_path), lora=LoraShape(rank=2, alpha=2.0)))
    optimizer = make_optimizer("adamw", run.trained, 1e-3, 0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]
