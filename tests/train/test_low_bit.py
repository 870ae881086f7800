"""AdamW in eight bits and a base in four, by the real bitsandbytes, which also runs on a CPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from tests.train.tiny_run import bases, configuration, trained  # noqa: F401 - `bases` is a fixture
from train.convert import read_lora
from train.engine import Finetuning
from train.recipe import BaseFiles, FinetuneConfig, LoraShape, Training


def low(base: Path, out: Path, dtype: str, optimizer: str) -> FinetuneConfig:
    training = Training(steps=3, warmup=0, learning_rate=3e-3, save_every=1, keep=2, optimizer=optimizer)
    config = configuration(base, out, training=training, lora=LoraShape(rank=16, alpha=8.0))
    return dataclasses.replace(config, base=BaseFiles(checkpoint=str(base), dtype=dtype))


def test_eight_bit_adam_learns_like_the_whole_one_and_resumes_exactly(bases, tmp_path):  # noqa: F811
    curves = {}
    for name in ("adamw", "adamw8bit"):
        config = low(bases["whole"], tmp_path / name, "fp32", name)
        run, curves[name] = Finetuning(config), []
        run.run(curves[name].append)
    states = [run.optimizer.state[parameter] for _, parameter in run.trained]
    assert any(state["state1"].dtype == torch.uint8 for state in states)
    losses = {name: [r.depth + r.normal for r in reports] for name, reports in curves.items()}
    assert losses["adamw8bit"] == pytest.approx(losses["adamw"], rel=0.02)
    parted = low(bases["whole"], tmp_path / "parted", "fp32", "adamw8bit")
    Finetuning(parted).run(until=1)
    last, again = Finetuning(parted), []
    last.run(again.append)
    assert again == curves["adamw8bit"][1:]
    assert all(torch.equal(tensor, trained(run)[name]) for name, tensor in trained(last).items())


def test_a_base_in_four_bits_trains_nearly_like_the_whole_one(bases, tmp_path):  # noqa: F811
    curves = {}
    for dtype in ("bf16", "nf4"):
        run, curves[dtype] = Finetuning(low(bases["whole"], tmp_path / dtype, dtype, "adamw")), []
        path = run.run(curves[dtype].append)
    layer = run.base.transformer.transformer_blocks[0].ff.net[2].base_layer
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() * 2 == layer.in_features * layer.out_features
    assert {parameter.dtype for _, parameter in run.trained} == {torch.float32}
    losses = {name: [r.depth + r.normal for r in reports] for name, reports in curves.items()}
    assert losses["nf4"] == pytest.approx(losses["bf16"], rel=0.1)
    modules, _ = read_lora(path)
    assert "double_blocks.0.img_mlp.2" in modules
    assert bool(modules["double_blocks.0.img_mlp.2"].up.any())


@pytest.mark.parametrize(("dtype", "optimizer", "message"), [
    ("nf4", "adamw", r"\[base\] dtype = 'nf4' needs bitsandbytes.*pip install bitsandbytes, or choose 'fp8'"),
    ("fp32", "adamw8bit", r"\[training\] optimizer = 'adamw8bit' needs bitsandbytes.* or choose 'adamw'"),
])  # fmt: skip
def test_without_bitsandbytes_the_error_says_what_to_do(tmp_path, monkeypatch, dtype, optimizer, message):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what an import finds where it is not installed
    with pytest.raises(ValueError, match=message):
        Finetuning(low(tmp_path / "not read.safetensors", tmp_path, dtype, optimizer))
