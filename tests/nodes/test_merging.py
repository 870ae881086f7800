"""Merged context tokens through ComfyUI's Flux: the same latents from fewer tokens."""

from __future__ import annotations

import comfy.ldm.modules.attention as attention
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.harness.golden import dit_weights, load_golden, vae_weights
from tests.harness.inprocess import pack_module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The golden network with a prompt cache whose padding repeats itself, as the release's does."""
    folder = tmp_path_factory.mktemp("merging")
    golden = load_golden("base")
    heads = {"connector_heads": str(golden.config.ctx_heads)}
    save_file(dit_weights(golden.config), folder / "step1x.safetensors", heads)
    vae = {name: tensor.contiguous() for name, tensor in vae_weights(golden.config).items()}
    save_file(vae, folder / "ae.safetensors")
    embeds = golden.tensors["embeds"].numpy().copy()
    embeds[golden.config.valid:] = embeds[-1]
    np.savez(folder / "no_info.npz", embeds=embeds, masks=golden.tensors["masks"].numpy())
    return folder


def load(files, dtype: str):
    names = ("step1x.safetensors", "ae.safetensors", "no_info.npz")
    transformer, vae, cache = (str(files / name) for name in names)
    return pack_module("nodes.loading").load_parts(transformer, None, 1.0, vae, cache, dtype)


# On a CPU ComfyUI keeps bf16 weights and computes in float32, so both are held to the same tolerance.
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@torch.inference_mode()
def test_merged_equals_unmerged(files, monkeypatch, dtype):
    golden, backend = load_golden("base"), pack_module("nodes.backend")
    model = load(files, dtype)
    image_latent = golden.tensors["fp32.image_latent"].repeat(2, 1, 1, 1)
    lengths: list[int] = []

    def count_text(state):
        lengths.append(state["txt"].shape[1])
        return state

    model.patcher.set_model_patch(count_text, "post_input")
    merged = backend.transform(model, image_latent)
    again = backend.transform(model, image_latent)
    monkeypatch.setattr(backend, "MASK_ATTENTION", ())
    unmerged = backend.transform(model, image_latent)
    # Five real tokens and the padding.
    assert lengths == [6, 6, 12]
    for with_mask, repeated, without in zip(merged, again, unmerged, strict=True):
        assert torch.equal(with_mask, repeated)
        torch.testing.assert_close(with_mask, without, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_an_attention_override_keeps_all_tokens(files):
    """What a user's attention function does with masks is unknown, so it gets none."""
    golden, backend = load_golden("base"), pack_module("nodes.backend")
    model = load(files, "fp32")
    masks: list[object] = []

    def override(function, *args, **kwargs):
        masks.append(kwargs.get("mask"))
        return function(*args, **kwargs)

    model.patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    backend.transform(model, golden.tensors["fp32.image_latent"])
    assert masks
    assert all(mask is None for mask in masks)


NAMES = ("attention_basic", "attention_pytorch", "attention_split", "attention_sub_quad")


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_every_listed_attention_adds_the_mask(name):
    assert pack_module("nodes.backend").MASK_ATTENTION == NAMES
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 20, 16, generator=generator) for _ in range(3))
    mask = torch.zeros(1, 1, 1, 20)
    mask[..., :4] = torch.tensor([2.0, 0.5, 0.0, 6.0])
    out = getattr(attention, name)(q, k, v, 3, skip_reshape=True, mask=mask)
    scores = (q.double() @ k.double().transpose(-1, -2)) / 4 + mask.double()
    expected = (scores.softmax(-1) @ v.double()).transpose(1, 2).reshape(2, 20, 48).float()
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)
