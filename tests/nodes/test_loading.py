"""Load FE2E Model: released parts, packed checkpoints, and what must be refused."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.harness import tiny
from tests.harness.inprocess import pack_module, run_node

NANO = Path(__file__).resolve().parents[2] / "models" / "fe2e-nano.safetensors"
PARTS = {"source": "released parts", "transformer": tiny.TRANSFORMER, "lora": tiny.LORA, "lora_strength": 1.0,
         "vae_name": tiny.VAE, "prompt_cache": tiny.PROMPT_CACHE}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tree of tiny released parts that ComfyUI's folder_paths looks into."""
    root = tmp_path_factory.mktemp("models")
    tiny.write_fe2e_parts(root)
    pack_module("nodes.folders").register()
    for folder in ("diffusion_models", "loras", "vae", "fe2e"):
        folder_paths.add_model_folder_path(folder, str(root / folder), is_default=True)
    return root


def load(**changes):
    vae = changes.pop("vae", None)
    return run_node(pack_module("nodes.loading").FE2ELoadModel, source=PARTS | changes, weight_dtype="fp32", vae=vae)[0]


def latents(model):
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return pack_module("nodes.backend").transform(model, torch.randn(1, 16, 6, 8, generator=generator))


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(latents(a), latents(b), strict=True))


def test_released_parts_become_a_folded_model(models):
    model = load()
    assert model.folded and model.info.lora == f"{tiny.LORA} at 1"
    names = set(model.patcher.model.diffusion_model.state_dict())
    assert not any(n.startswith("connector.") or n.endswith("_mod.lin.weight") for n in names)


def test_a_packed_file_stays_folded_and_says_so(caplog):
    load = pack_module("nodes.loading").load_checkpoint
    assert load(str(NANO), None, 1.0, "fp32").folded
    assert "fold" not in caplog.text
    assert load(str(NANO), None, 1.0, "fp32", fold=False).folded
    assert "load the released parts" in caplog.text


def test_the_lora_and_its_strength_matter(models):
    assert same(load(lora="none"), load(lora_strength=0.0))
    assert not same(load(lora="none"), load())
    assert not same(load(lora_strength=0.5), load())


def test_a_connected_vae_equals_the_same_file(models):
    connected = pack_module("nodes.backend").build_vae(load_file(models / "vae" / tiny.VAE))
    image = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        a, b = (pack_module("nodes.backend").encode(m, image) for m in (load(vae_name="connected VAE", vae=connected), load()))
    assert torch.equal(a, b)


def test_a_connected_half_precision_vae_is_used_in_float32_and_left_as_it_was(models):
    connected = pack_module("nodes.backend").build_vae(load_file(models / "vae" / tiny.VAE))
    connected.first_stage_model.to(torch.bfloat16)
    model = load(vae_name="connected VAE", vae=connected)
    assert next(model.vae.first_stage_model.parameters()).dtype == torch.float32
    assert next(connected.first_stage_model.parameters()).dtype == torch.bfloat16


def test_nothing_connected_is_said(models):
    with pytest.raises(ValueError, match="vae: 'connected VAE' is chosen but no VAE is connected"):
        load(vae_name="connected VAE")


@pytest.mark.parametrize("change, what", [
    ({"transformer": "gone.safetensors"}, "transformer: there is no file 'gone.safetensors' in the model folder 'diffusion_models'"),
    ({"lora": "gone.safetensors"}, "LoRA: there is no file"),
    ({"vae_name": "gone.safetensors"}, "VAE: there is no file"),
    ({"prompt_cache": "gone.npz"}, "prompt cache: there is no file"),
])
def test_a_missing_file_is_named(models, change, what):
    with pytest.raises(FileNotFoundError, match=what):
        load(**change)


def _write(models, folder, name, tensors, metadata=None):
    save_file(tensors, models / folder / name, metadata)
    return name


def test_a_stable_diffusion_vae_is_no_transformer_and_no_flux_vae(models):
    sd_vae = {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3), "encoder.conv_out.weight": torch.zeros(8, 8, 3, 3),
              "quant_conv.weight": torch.zeros(8, 8, 1, 1), "decoder.up.0.block.0.conv1.weight": torch.zeros(8, 8, 3, 3)}
    name = _write(models, "diffusion_models", "sdvae.safetensors", sd_vae)
    with pytest.raises(ValueError, match="no FLUX-shaped transformer here; it looks like an autoencoder"):
        load(transformer=name)
    name = _write(models, "vae", "sdvae.safetensors", sd_vae)
    with pytest.raises(ValueError, match="this autoencoder has 4 latent channels and a quant_conv"):
        load(vae_name=name)


def test_a_lora_that_fits_in_part_is_refused(models):
    lora = load_file(models / "loras" / tiny.LORA)
    stranger = lora | {"lora_unet_double_blocks_9_img_attn_qkv.lora_down.weight": torch.zeros(4, 256),
                       "lora_unet_double_blocks_9_img_attn_qkv.lora_up.weight": torch.zeros(768, 4)}
    name = _write(models, "loras", "partly.safetensors", stranger)
    with pytest.raises(ValueError, match=r"LoRA: 2 of \d+ keys of 'partly.safetensors' belong to no layer"):
        load(lora=name)
    name = _write(models, "loras", "other.safetensors", {"unet.down.lora_A.weight": torch.zeros(4, 4)})
    with pytest.raises(ValueError, match="LoRA: 1 of 1 keys"):
        load(lora=name)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
@pytest.mark.parametrize("folder, key", [("diffusion_models", "transformer"), ("loras", "lora"), ("vae", "vae_name")])
def test_damaged_files_are_refused(models, folder, key, damage):
    source = models / folder / PARTS[key]
    data = {"truncated": source.read_bytes()[:-100], "empty": b"", "text": b"not a model" * 10}[damage]
    name = f"{damage}.safetensors"
    (models / folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"'{name}' \(\d+ bytes\) is not a whole safetensors file"):
        load(**{key: name})


@pytest.mark.parametrize("arrays, problem", [
    ({"embeds": np.zeros((3, 64), np.float32)}, "has no array 'masks'"),
    ({"embeds": np.zeros((3, 64), np.float32), "masks": np.ones(4, np.int64)}, r"expected \(tokens, width\) and \(tokens,\)"),
    ({"embeds": np.full((3, 64), np.nan, np.float32), "masks": np.ones(3, np.int64)}, "not finite"),
    ({"embeds": np.zeros((3, 64), np.float32), "masks": np.zeros(3, np.int64)}, "mask that is not of zeros and ones with a one"),
    ({"embeds": np.zeros((3, 32), np.float32), "masks": np.ones(3, np.int64)}, "embeddings are 32 wide, this transformer's connector takes 64"),
    ({"embeds": np.array([object()] * 3), "masks": np.ones(3, np.int64)}, "could only be read by pickle"),
])
def test_wrong_prompt_caches_are_refused(models, arrays, problem):
    np.savez(models / "fe2e" / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=f"prompt cache: .*{problem}"):
        load(prompt_cache="wrong.npz")


def test_a_prompt_cache_whose_header_lies_is_refused_before_allocating(models):
    path = models / "fe2e" / "liar.npz"
    np.savez(path, embeds=np.zeros((3, 64), np.float32), masks=np.ones(3, np.int64))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(3, 64), }          ", b"(300000000, 64), }  ", 1))
    with pytest.raises(ValueError, match="prompt cache: 'liar.npz'"):
        load(prompt_cache="liar.npz")


def test_a_safetensors_prompt_cache_equals_the_npz(models):
    with np.load(models / "fe2e" / tiny.PROMPT_CACHE) as cache:
        _write(models, "fe2e", "cache.safetensors", {k: torch.from_numpy(cache[k]) for k in ("embeds", "masks")})
    assert same(load(prompt_cache="cache.safetensors"), load())
