"""Golden parity through ComfyUI's own Flux and VAE, loaded by our loader from released-format files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.harness.golden import dit_weights, load_golden, lora_weights, vae_weights
from tests.harness.inprocess import pack_module


@pytest.fixture(autouse=True)
def one_thread():
    """Several threads sum in another order; the last digits that the bounds below leave are not for that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Released-format files of the golden network; the odd head width of its connector stands in the metadata."""
    folder = tmp_path_factory.mktemp("golden")
    golden = load_golden("base")
    save_file(dit_weights(golden.config), folder / "step1x.safetensors", {"connector_heads": str(golden.config.ctx_heads)})
    save_file({k: v.contiguous() for k, v in vae_weights(golden.config).items()}, folder / "ae.safetensors")
    save_file(lora_weights(load_golden("lora").config), folder / "LDRN.safetensors")
    np.savez(folder / "no_info.npz", embeds=golden.tensors["embeds"].numpy(), masks=golden.tensors["masks"].numpy())
    return folder


def load(files, name: str, dtype: str):
    lora = str(files / "LDRN.safetensors") if name == "lora" else None
    return pack_module("nodes.loading").load_parts(str(files / "step1x.safetensors"), lora, 1.0, str(files / "ae.safetensors"),
                                                   str(files / "no_info.npz"), dtype)


@pytest.mark.parametrize("name", ["base", "lora"])
@torch.inference_mode()
def test_float32_latents_and_maps_equal_the_reference(files, name):
    golden, backend = load_golden(name), pack_module("nodes.backend")
    model = load(files, name, "fp32")
    assert model.folded
    latent = backend.encode(model, golden.image)
    torch.testing.assert_close(latent.cpu(), golden.tensors["fp32.image_latent"], atol=2e-5, rtol=0)
    depth, normal = backend.transform(model, golden.tensors["fp32.image_latent"])
    torch.testing.assert_close(depth.cpu(), golden.tensors["fp32.depth_latent"], atol=2e-5, rtol=0)
    torch.testing.assert_close(normal.cpu(), golden.tensors["fp32.normal_latent"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["base", "lora"])
@torch.inference_mode()
def test_the_node_gives_the_reference_maps(files, name):
    golden = load_golden(name)
    model = load(files, name, "fp32")
    estimation, sizing = pack_module("nodes.estimation"), pack_module("fe2e_core.sizing")
    mask = torch.ones(1, 48, 64, dtype=torch.bool)
    geometry = estimation.estimate(model, golden.image, mask, sizing.fit(48, 64, "native"))
    torch.testing.assert_close((geometry["log_depth"][0] + 1) / 2, golden.tensors["fp32.depth"], atol=1e-3, rtol=0)
    # The reference's maps are in the network's axes and not yet of unit length; ours are OpenCV unit vectors.
    expected = -torch.nn.functional.normalize(golden.tensors["fp32.normal"].movedim(0, -1), dim=-1)
    torch.testing.assert_close(geometry["normal"][0], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["base", "lora"])
@torch.inference_mode()
def test_bfloat16_is_as_close_as_the_references_bfloat16(files, name):
    golden, backend = load_golden(name), pack_module("nodes.backend")
    model = load(files, name, "bf16")
    latents = backend.transform(model, golden.tensors["fp32.image_latent"])
    for ours, key in zip(latents, ("depth_latent", "normal_latent"), strict=True):
        exact, reference = golden.tensors[f"fp32.{key}"], golden.tensors[f"bf16.{key}"]
        rms = (ours.cpu() - exact).square().mean().sqrt()
        assert rms <= 1.25 * (reference - exact).square().mean().sqrt(), f"{key}: {rms}"
