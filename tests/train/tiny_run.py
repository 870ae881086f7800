"""The smallest run of fine-tuning: a base that nobody trained, and a configuration of a few steps on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fe2e_core.checkpoint import CheckpointInfo, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.folding import fold, modulation_input
from tests.harness.golden import GoldenConfig, dit_weights, vae_weights
from train.data.procedural import ProceduralConfig
from train.data.settings import DataConfig, WeightedSource
from train.dispersive import DispersiveConfig
from train.engine import Finetuning
from train.recipe import BaseFiles, FinetuneConfig, LoraShape, Training, WatchConfig

GOLDEN = GoldenConfig(hidden=128, depth=1, single=2, ctx=32)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """The golden network at its smallest as an FE2E checkpoint, whole and folded."""
    folder = tmp_path_factory.mktemp("bases")
    weights = {k: v.float() for k, v in dit_weights(GOLDEN, connector=False).items()}
    vae = {k: v.float() for k, v in vae_weights(GOLDEN).items()}
    generator = torch.Generator().manual_seed(0)
    conditioning = Conditioning(
        torch.randn(1, 3, 32, generator=generator), torch.randn(1, 768, generator=generator)
    )
    silu_vec = modulation_input(weights, conditioning, torch.float32)
    paths = {}
    for name, tensors in (("whole", weights), ("folded", fold(weights, silu_vec))):
        paths[name] = folder / f"{name}.safetensors"
        write_checkpoint(paths[name], CheckpointInfo(name=name), tensors, vae, conditioning, silu_vec)
    return paths


def configuration(base: Path, out: Path, **changes) -> FinetuneConfig:
    source = WeightedSource("procedural", "procedural", 1.0, ProceduralConfig(32, 48, scenes=6))
    training = Training(steps=4, warmup=0, learning_rate=3e-3, save_every=1, keep=2)
    values = {
        "name": "run", "out": str(out), "base": BaseFiles(checkpoint=str(base), dtype="fp32"),
        "data": DataConfig((source,), batch=2, workers=0), "lora": LoraShape(rank=4, alpha=2.0),
        "dispersive": DispersiveConfig(block=1), "training": training, "watch": WatchConfig(tensorboard=False),
    }  # fmt: skip
    return FinetuneConfig(**(values | changes))


def trained(run: Finetuning) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.trained}
