"""The released model's names and shapes (no weights): ComfyUI's detection, the LoRA's map, folding."""

from __future__ import annotations

import json

import comfy.lora
import comfy.model_detection
import pytest
import torch

from tests.harness.golden import DATA, RELEASED, lora_shapes
from tests.harness.inprocess import pack_module


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    shapes = json.loads((DATA / "step1x_keys.json").read_text())
    return {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def transformer(tensors):
    """ComfyUI's own class for these tensors, on the meta device."""
    shapes = {name: tensor for name, tensor in tensors.items() if not name.startswith("connector.")}
    config = comfy.model_detection.model_config_from_unet(shapes, "")
    config.set_inference_dtype(torch.bfloat16, None)
    return config, config.get_model(shapes, "", device=torch.device("meta"))


def test_comfyui_detects_it_and_all_parameters_have_a_place(tensors, transformer):
    config, model = transformer
    assert type(config).__name__ == "FluxSchnell"
    assert config.unet_config["guidance_embed"] is False
    assert (config.unet_config["hidden_size"], config.unet_config["depth"], config.unet_config["depth_single_blocks"]) == (3072, 19, 38)
    wanted = config.process_unet_state_dict({k: v for k, v in tensors.items() if not k.startswith("connector.")})
    built = model.diffusion_model.state_dict()
    assert {k: tuple(v.shape) for k, v in built.items()} == {k: tuple(v.shape) for k, v in wanted.items()}
    assert sum(t.numel() for t in tensors.values()) == 12_427_800_385


def test_all_304_layers_of_the_lora_have_a_place_in_ours_and_comfyuis_map(tensors, transformer):
    keys = lora_shapes(RELEASED)
    lora = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    ours = pack_module("fe2e_core.lora").match_lora(lora, tensors, "LDRN.safetensors")
    assert len(ours) == 304
    theirs = comfy.lora.model_lora_keys_unet(transformer[1], {})
    layers = {name.split(".")[0] for name in keys}
    assert len(layers) == 304
    assert layers <= set(theirs)
    for module, change in ours.items():
        assert (change.up.shape[0], change.down.shape[1]) == tuple(tensors[f"{module}.weight"].shape)
        assert theirs["lora_unet_" + module.replace(".", "_")] == f"diffusion_model.{module}.weight"


def test_folding_leaves_8_64_billion_parameters(tensors, transformer):
    folding, assembly = pack_module("fe2e_core.folding"), pack_module("fe2e_core.assembly")
    silu_vec = torch.empty(1, 3072, device="meta")
    folded = assembly.Assembled(tensors, silu_vec, assembly.Storage())
    count = sum(folded.meta(name).numel() for name in folded)
    assert 8.6e9 < count <= 8.7e9
    sizes = {m: tensors[f"{m}.weight"].shape[0] for m in folding.modulation_modules(tensors)}
    assert len(sizes) == 2 * 19 + 38 + 1
    folding.install_constants(transformer[1].diffusion_model, sizes)
    parameters = dict(transformer[1].diffusion_model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == count
    assert {k.replace("_norm.weight", "_norm.scale"): tuple(p.shape) for k, p in parameters.items()} == \
        {k: tuple(folded.meta(k).shape) for k in folded}


@pytest.mark.parametrize(("storage", "gigabytes"), [("bf16", 17.3), ("fp8_scaled", 8.7), ("int8", 8.7)])
def test_size_of_a_packed_transformer(tensors, storage, gigabytes):
    from train.pack import STORAGES

    assembly = pack_module("fe2e_core.assembly")
    wanted = STORAGES[storage]
    stored = assembly.Assembled(tensors, torch.empty(1, 3072, device="meta"),
                                assembly.Storage(wanted.dtype, wanted.format, wanted.constants))
    size = sum(stored.meta(n).numel() * stored.meta(n).element_size() for n in stored)
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.1)
