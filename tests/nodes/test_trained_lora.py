"""What training exports, loaded by the pack and by ComfyUI itself: the same change as in diffusers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fe2e_core.checkpoint import CheckpointInfo, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.folding import fold, modulation_input
from fe2e_core.keymaps import linear_modules
from fe2e_core.lora import LoraModule, Merged, match_lora
from fe2e_core.packing import predict_latents
from tests.harness.golden import GoldenConfig, dit_weights, vae_weights
from tests.harness.inprocess import pack_module
from train.bases import open_base
from train.lora_export import LoraNotes, to_diffusers, write_kohya
from train.recipe import BaseFiles

CONFIG = GoldenConfig(hidden=256, depth=1, single=2, ctx=32)
RANK = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """An FE2E checkpoint, whole and folded, and a LoRA as training leaves it: parts of their own, and a
    `diff_b`.
    """
    folder = tmp_path_factory.mktemp("trained")
    weights = {k: v.float() for k, v in dit_weights(CONFIG, connector=False).items()}
    vae = {k: v.float() for k, v in vae_weights(CONFIG).items()}
    generator = torch.Generator().manual_seed(0)
    conditioning = Conditioning(
        torch.randn(1, 3, 32, generator=generator), torch.randn(1, 768, generator=generator)
    )
    silu_vec = modulation_input(weights, conditioning, torch.float32)
    for name, tensors in (("whole", weights), ("folded", fold(weights, silu_vec))):
        write_checkpoint(
            folder / f"{name}.safetensors", CheckpointInfo(name=name), tensors, vae, conditioning, silu_vec
        )

    plain = {m: LoraModule(torch.zeros(RANK, weights[f"{m}.weight"].shape[1]), torch.zeros(weights[f"{m}.weight"].shape[0], RANK), 2.0)
             for m in linear_modules(1, 2) if "blocks" in m}  # fmt: skip
    names = to_diffusers(plain)
    drawn = {
        k: torch.randn(v.shape, generator=generator) * (0.03 if "lora_B" in k else 0.3)
        for k, v in names.items()
    }
    modules = match_lora(drawn, weights, metadata={"lora_adapter_metadata": f'{{"lora_alpha": {RANK / 2}}}'})
    changed = "single_blocks.1.modulation.lin"
    old = modules[changed]
    modules[changed] = LoraModule(
        old.down, old.up, old.alpha, 0.1 * torch.randn(3 * CONFIG.hidden, generator=generator)
    )
    write_kohya(folder / "lora.safetensors", modules, LoraNotes("test"))
    save_file(to_diffusers(modules), folder / "diffusers.safetensors")
    return folder


def latent() -> torch.Tensor:
    return torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_diffusers(files: Path, lora: bool) -> tuple[torch.Tensor, torch.Tensor]:
    base = open_base(BaseFiles(checkpoint=str(files / "whole.safetensors"), dtype="fp32"), digest=False)
    if lora:
        base.transformer.load_lora_adapter(load_file(files / "diffusers.safetensors"), prefix="transformer")
    return predict_latents(base.velocity(base.transformer), latent(), base.conditioning)


@pytest.mark.parametrize("base", ["whole", "folded"])
@pytest.mark.parametrize("form", ["lora", "diffusers"])
@torch.inference_mode()
def test_the_pack_makes_the_change_that_diffusers_makes(files, base, form):
    plain, expected = by_diffusers(files, False), by_diffusers(files, True)
    model = pack_module("nodes.loading").load_checkpoint(
        str(files / f"{base}.safetensors"), str(files / f"{form}.safetensors"), 1.0, "fp32"
    )
    ours = pack_module("nodes.backend").transform(model, latent())
    for one, other, before in zip(ours, expected, plain, strict=True):
        assert float((other - before).abs().max()) > 0.1
        torch.testing.assert_close(one.cpu(), other, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_comfyui_takes_every_key_and_patches_the_same_weights(files, caplog):
    import comfy.lora
    import comfy.lora_convert
    import comfy.sd

    weights = {k: v.float() for k, v in dit_weights(CONFIG, connector=False).items()}
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(weights))
    tensors = comfy.lora_convert.convert_lora(load_file(files / "lora.safetensors"))
    with caplog.at_level(logging.WARNING):
        patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(patcher.model, {}))
    assert "not loaded" not in caplog.text
    assert len(patches) == len([m for m in linear_modules(1, 2) if "blocks" in m]) + 1
    assert len(patcher.add_patches(patches, 1.0)) == len(patches)
    with torch.no_grad():
        expected = Merged(weights, match_lora(load_file(files / "lora.safetensors"), weights))
        patcher.patch_model()
        patched = patcher.model.diffusion_model.state_dict()
    for key in (
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.1.linear1.weight",
        "single_blocks.1.modulation.lin.bias",
    ):
        torch.testing.assert_close(patched[key].float(), expected[key], atol=1e-2, rtol=1e-2)
        assert not torch.equal(expected[key], weights[key])
