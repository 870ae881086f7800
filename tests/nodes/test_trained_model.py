"""From procedural scenes to a LoRA in ComfyUI: a tiny model is trained on the CPU, gets better on scenes it never
saw, and what it learned is the same in the pack, loaded by its node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths
import pytest
import torch

from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.folding import fold, modulation_input
from fe2e_core.packing import predict_latents
from fe2e_core.tensorfile import TensorFile
from tests.harness.golden import GoldenConfig, dit_weights
from tests.harness.inprocess import pack_module, run_node
from train.bases import open_base
from train.cache import CacheConfig
from train.convert import read_lora
from train.data.procedural import ProceduralConfig
from train.data.settings import DataConfig, WeightedSource
from train.dispersive import DispersiveConfig
from train.engine import Finetuning
from train.journal import read_journal
from train.lora_export import to_diffusers
from train.recipe import (
    BaseFiles,
    FinetuneConfig,
    LoraShape,
    Training,
    ValidationConfig,
    WatchConfig,
)

CONFIG = GoldenConfig(hidden=128, depth=1, single=2, ctx=32)
NANO = Path(__file__).resolve().parents[2] / "models/fe2e-nano.safetensors"
DTYPES = ("fp32", "bf16")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Trained:
    """A run, its scores before and after where it was validated, and its LoRA."""

    scores: list[dict[str, float]]
    lora: Path
    run: Finetuning


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A tiny transformer that nobody trained, whole and folded, with the embedded model's autoencoder."""
    folder = tmp_path_factory.mktemp("untrained")
    weights = {k: v.float() for k, v in dit_weights(CONFIG, connector=False).items()}
    generator = torch.Generator().manual_seed(0)
    conditioning = Conditioning(
        torch.randn(1, 3, 32, generator=generator), torch.randn(1, 768, generator=generator)
    )
    silu_vec = modulation_input(weights, conditioning, torch.float32)
    with TensorFile(NANO) as file:
        stored = read_checkpoint(file).vae
        vae = {name: stored[name].float() for name in stored}
    for name, tensors in (("whole", weights), ("folded", fold(weights, silu_vec))):
        path = folder / f"untrained-{name}.safetensors"
        write_checkpoint(path, CheckpointInfo(name=name), tensors, vae, conditioning, silu_vec)
    pack_module("nodes.folders").register()
    folder_paths.add_model_folder_path("fe2e", str(folder), is_default=True)
    return folder


def train(checkpoints: Path, base: str, out: Path, steps: int) -> Trained:
    source = WeightedSource("procedural", "procedural", 1.0, ProceduralConfig(48, 64, scenes=36))
    config = FinetuneConfig(
        name=f"{base}_lora", out=str(out),
        base=BaseFiles(checkpoint=str(checkpoints / f"untrained-{base}.safetensors"), dtype="fp32"),
        data=DataConfig((source,), batch=6, mirror=0, workers=0), dispersive=DispersiveConfig(weight=0),
        lora=LoraShape(rank=32, alpha=32.0, constants=base == "folded"),
        training=Training(steps=steps, warmup=10, learning_rate=3e-3, schedule="cosine", gradient_checkpointing=False),
        cache=CacheConfig(str(out / "cache")), watch=WatchConfig(tensorboard=False),
        validation=ValidationConfig(every=steps if base == "whole" else 0, pictures=8, drawn=4),
    )  # fmt: skip
    run = Finetuning(config, digest=False)
    lora = run.run()
    scores = config.folder / "validation.jsonl"
    return Trained(read_journal(scores) if scores.is_file() else [], lora, run)


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory) -> dict[str, Trained]:
    """A long run on the whole base; a short one on the folded base, which trains its constants as well."""
    out = tmp_path_factory.mktemp("runs")
    found = {base: train(checkpoints, base, out, steps) for base, steps in (("whole", 200), ("folded", 20))}
    for run in found.values():
        folder_paths.add_model_folder_path("loras", str(run.lora.parent), is_default=True)
    return found


def test_training_makes_scenes_it_never_saw_better(runs):
    before, after = runs["whole"].scores
    for key in ("abs_rel", "angle"):
        print(f"{key}: {before[key]:.4f} untrained, {after[key]:.4f} trained, ratio {after[key] / before[key]:.3f}")
    assert (before["step"], after["step"]) == (0, 200)
    assert after["abs_rel"] <= 0.9 * before["abs_rel"]
    assert after["angle"] <= 0.9 * before["angle"]


def latent() -> torch.Tensor:
    return torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_diffusers(run: Trained, dtype: str, lora: bool) -> list[torch.Tensor]:
    """Depth and normal latents of the base that the run started from, in diffusers, with or without its LoRA."""
    name = run.run.config.base.checkpoint
    base = open_base(BaseFiles(checkpoint=name, dtype=dtype), digest=False)
    if lora:
        modules, _ = read_lora(run.lora)
        factors = {m: part for m, part in modules.items() if part.down is not None}
        base.transformer.load_lora_adapter(to_diffusers(factors), prefix="transformer")
        for name, constant in run.run.base.transformer.named_parameters():
            if name.endswith(".constant") and constant.requires_grad:
                base.transformer.get_parameter(name).copy_(constant)
    return [part.float() for part in predict_latents(base.velocity(base.transformer), latent(), base.conditioning)]


def by_the_node(checkpoint: str, lora: Path | None, dtype: str) -> list[torch.Tensor]:
    """The same through `FE2ELoadModel` and ComfyUI's Flux."""
    node = pack_module("nodes.loading").FE2ELoadModel
    source = {"source": "FE2E checkpoint", "checkpoint": f"untrained-{checkpoint}.safetensors",
              "lora_strength": 1.0, "lora": lora.name if lora else "none"}  # fmt: skip
    (model,) = run_node(node, source=source, weight_dtype=dtype)
    with torch.inference_mode():
        return [part.float().cpu() for part in pack_module("nodes.backend").transform(model, latent())]


@pytest.mark.parametrize("checkpoint", ["whole", "folded"])
@pytest.mark.parametrize("trained_on", ["whole", "folded"])
def test_the_node_makes_the_change_that_diffusers_makes(runs, trained_on, checkpoint):
    run = runs[trained_on]
    exact = {lora: by_diffusers(run, "fp32", lora) for lora in (False, True)}
    ours, theirs = ({}, {})
    for dtype in DTYPES:
        for lora in (False, True):
            ours[dtype, lora] = by_the_node(checkpoint, run.lora if lora else None, dtype)
            theirs[dtype, lora] = exact[lora] if dtype == "fp32" else by_diffusers(run, dtype, lora)
    for part in range(2):
        change = exact[True][part] - exact[False][part]
        assert float(change.abs().max()) > 0.1

        def error(found: dict, dtype: str, part: int = part, change: torch.Tensor = change) -> torch.Tensor:
            return found[dtype, True][part] - found[dtype, False][part] - change

        assert float(error(ours, "fp32").abs().max()) < 1e-3
        # in BF16 both round; ours no further from the exact change than diffusers' own
        own = float(error(theirs, "bf16").square().mean().sqrt())
        assert 0 < float(error(ours, "bf16").square().mean().sqrt()) < 1.5 * own
