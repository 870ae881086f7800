"""Every base that training takes: a step or two, the LoRA loaded by the pack into the real ComfyUI, and packed."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fe2e_core.checkpoint import CheckpointInfo, write_checkpoint
from fe2e_core.folding import is_folded, modulation_input
from fe2e_core.packing import predict_latents
from fe2e_core.tensorfile import TensorFile
from tests.harness import tiny
from tests.harness.golden import GoldenConfig, dit_weights, draw, vae_weights
from tests.harness.inprocess import pack_module
from train import pack
from train.bases import open_base
from train.data.procedural import ProceduralConfig
from train.data.settings import DataConfig, WeightedSource
from train.dispersive import DispersiveConfig
from train.engine import Finetuning
from train.recipe import BaseFiles, FinetuneConfig, LoraShape, Objective, Training

CONFIG = GoldenConfig(hidden=128, depth=1, single=2, ctx=128, ctx_heads=1)
GUIDANCE = 3.5


@dataclass(frozen=True)
class Kind:
    """A base's file and what stands beside it."""

    transformer: str
    conditioning: str
    guided: bool = False


KINDS = {
    "step1x-v1.0": Kind("step1x-edit-i1258.safetensors", tiny.PROMPT_CACHE),
    "step1x-v1.1": Kind("step1x-edit-v1p1-official.safetensors", tiny.PROMPT_CACHE),
    "schnell": Kind("flux1-schnell.safetensors", "empty.safetensors"),
    "dev": Kind("flux1-dev.safetensors", "empty.safetensors", guided=True),
    "kontext": Kind("flux1-kontext-dev.safetensors", "empty.safetensors", guided=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tiny files of each kind, float32. dev and Kontext have the same names; their weights differ."""
    root = tmp_path_factory.mktemp("bases")
    generator = torch.Generator().manual_seed(0)
    save_file({"context": torch.randn(1, 4, CONFIG.ctx, generator=generator),
               "pooled": torch.randn(1, 768, generator=generator)}, root / "empty.safetensors")  # fmt: skip
    tiny.write_prompt_cache(root / tiny.PROMPT_CACHE, CONFIG)
    save_file({k: v.float() for k, v in vae_weights(CONFIG).items()}, root / "ae.safetensors")
    for number, (name, kind) in enumerate(KINDS.items()):
        config = GoldenConfig(**CONFIG.__dict__ | {"seed": CONFIG.seed + number})
        weights = {k: v.float() for k, v in dit_weights(config, connector=name.startswith("step1x")).items()}
        if name == "step1x-v1.1":
            del weights["connector.scale_factor"]
        if kind.guided:
            shapes = {"in_layer.weight": (128, 256), "in_layer.bias": (128,), "out_layer.weight": (128, 128),
                      "out_layer.bias": (128,)}  # fmt: skip
            weights |= {f"guidance_in.{k}": draw(f"guidance_in.{k}", s, config.seed).float() for k, s in shapes.items()}
        save_file(weights, root / kind.transformer)
    return root


def files(folder: Path, name: str, **changes) -> BaseFiles:
    kind = KINDS[name]
    key = "prompt_cache" if kind.conditioning.endswith(".npz") else "conditioning"
    values = {"transformer": str(folder / kind.transformer), "vae": str(folder / "ae.safetensors"), "dtype": "fp32",
              "guidance": GUIDANCE, key: str(folder / kind.conditioning)}  # fmt: skip
    return BaseFiles(**(values | changes))


def trained(folder: Path, out: Path, name: str, fold: bool, **changes) -> tuple[Finetuning, Path]:
    """A run of two steps, and the LoRA it wrote."""
    source = WeightedSource("procedural", "procedural", 1.0, ProceduralConfig(32, 48, scenes=4))
    values = {
        "name": "run", "out": str(out), "base": files(folder, name, fold=fold),
        "data": DataConfig((source,), batch=1, workers=0), "lora": LoraShape(rank=4, alpha=4.0, constants=fold),
        "dispersive": DispersiveConfig(weight=0), "training": Training(steps=2, warmup=0, learning_rate=0.02),
    }  # fmt: skip
    run = Finetuning(FinetuneConfig(**(values | changes)))
    return run, run.run()


def latent() -> torch.Tensor:
    return torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_diffusers(run: Finetuning) -> tuple[torch.Tensor, ...]:
    return predict_latents(run.base.velocity(run.base.transformer), latent(), run.base.conditioning)


@torch.inference_mode()
def by_comfyui(model) -> list[torch.Tensor]:
    return [part.cpu() for part in pack_module("nodes.backend").transform(model, latent())]


def load(folder: Path, name: str, lora: Path | None, fold: bool = True):
    kind = KINDS[name]
    return pack_module("nodes.loading").load_parts(
        str(folder / kind.transformer), None if lora is None else str(lora), 1.0, str(folder / "ae.safetensors"),
        str(folder / kind.conditioning), "fp32", fold)  # fmt: skip


def close(ours, expected) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("fold", [False, True])
def test_the_pack_runs_what_was_trained(folder, tmp_path, name, fold):
    untrained = open_base(files(folder, name), digest=False)
    with torch.no_grad():
        before = predict_latents(untrained.velocity(untrained.transformer), latent(), untrained.conditioning)
    run, lora = trained(folder, tmp_path, name, fold)
    expected = by_diffusers(run)
    assert all(float((a - b).abs().max()) > 0.03 for a, b in zip(before, expected, strict=True))

    model = load(folder, name, lora)
    assert model.folded
    assert not any(key.startswith("guidance_in") for key in model.patcher.model.diffusion_model.state_dict())
    close(by_comfyui(model), expected)

    packed = tmp_path / "packed.safetensors"
    parts = pack.Parts(folder / KINDS[name].transformer, folder / "ae.safetensors", folder / KINDS[name].conditioning, lora=lora)
    info = pack.pack(parts, packed, pack.STORAGES["fp32"], digests=False)
    assert (info.height, info.width) == (32, 48)
    with TensorFile(packed) as file:
        assert is_folded(key.removeprefix("transformer.") for key in file)
        assert not any("guidance" in key for key in file)
    close(by_comfyui(pack_module("nodes.loading").load_checkpoint(str(packed), None, 1.0, "fp32")), expected)


def test_guidance_is_used_unfolded_as_well_and_counts(folder, tmp_path):
    name = "dev"
    run, lora = trained(folder, tmp_path, name, fold=False)
    model = load(folder, name, lora, fold=False)
    assert not model.folded
    assert model.conditioning.guidance == GUIDANCE
    close(by_comfyui(model), by_diffusers(run))
    path = tmp_path / "whole.safetensors"
    with TensorFile(folder / KINDS[name].transformer) as file, TensorFile(folder / "ae.safetensors") as vae:
        write_checkpoint(path, CheckpointInfo(name="whole"), file, vae, run.base.conditioning, None)
    again = pack_module("nodes.loading").load_checkpoint(str(path), str(lora), 1.0, "fp32")
    close(by_comfyui(again), by_diffusers(run))
    other = open_base(files(folder, name, guidance=1.0, fold=True), digest=False)
    same = open_base(files(folder, name, fold=True), digest=False)
    differences = [float((other.constants[k] - same.constants[k]).abs().max()) for k in same.constants]
    assert min(differences) > 0.01


def test_bf16_keeps_the_guidance_exact(folder):
    """diffusers alone would make 3504 of 3500 in BF16."""
    exact = open_base(files(folder, "dev"), digest=False)
    rounded = open_base(files(folder, "dev", dtype="bf16"), digest=False)
    with TensorFile(folder / KINDS["dev"].transformer) as file:
        expected = modulation_input(file, exact.conditioning, torch.float32)
    for base, tolerance in ((exact, 1e-5), (rounded, 0.03)):
        seen = []
        handle = base.transformer.time_text_embed.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out))
        with torch.no_grad():
            predict_latents(base.velocity(base.transformer), latent(), base.conditioning)
        handle.remove()
        vec = torch.nn.functional.silu(seen[0].float())
        assert float((vec - expected).norm() / expected.norm()) < tolerance


def test_how_it_was_trained_comes_with_the_lora(folder, tmp_path, caplog):
    _, lora = trained(folder, tmp_path, "schnell", False, objective=Objective(quantization="inverse", joint=False))
    with caplog.at_level(logging.INFO):
        model = load(folder, "schnell", lora)
    assert model.info.quantization == "inverse"
    assert "the normals it gives mean nothing; its depth labels are inverse depth" in caplog.text


def test_a_lora_that_predicts_from_noise_is_refused(folder, tmp_path):
    _, lora = trained(folder, tmp_path, "dev", False, objective=Objective(start="noise", time="random", steps=4, joint=False))
    with pytest.raises(ValueError, match=r"LoRA 'run.safetensors': it was trained with start = 'noise'"):
        load(folder, "dev", lora)


@pytest.mark.parametrize("name", ["step1x-v1.1", "schnell", "dev"])
def test_without_a_lora_of_ones_own_the_base_must_be_the_released_one(folder, name):
    with pytest.raises(ValueError, match=KINDS[name].transformer):
        load(folder, name, None)


def test_another_file_name_is_said(folder, tmp_path, caplog):
    _, lora = trained(folder, tmp_path, "kontext", False)
    with caplog.at_level(logging.WARNING):
        load(folder, "kontext", lora)
        assert "was trained on" not in caplog.text
        load(folder, "dev", lora)
    assert "the LoRA was trained on 'flux1-kontext-dev.safetensors'" in caplog.text


def test_a_damaged_description_is_named(folder, tmp_path):
    path = tmp_path / "broken.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"fe2e.config": json.dumps({"base": {}})})
    with pytest.raises(ValueError, match=r"LoRA 'broken.safetensors': its metadata 'fe2e.config' cannot be read"):
        load(folder, "dev", path)
