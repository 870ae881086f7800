"""Wrong bases are recognised and named, by names and shapes alone (no tensor is read)."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch

from fe2e_core.architecture import TransformerSize, autoencoder_shapes, transformer_shapes
from fe2e_core.keymaps import flux_to_diffusers, vae_to_diffusers
from fe2e_core.recognition import check_base, check_transformer, check_vae, describe
from tests.harness.golden import DATA, GoldenConfig, dit_shapes, lora_shapes, vae_shapes

SMALL = GoldenConfig(hidden=256, depth=2, single=2, ctx=128, ctx_heads=1, llm=64)


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in shapes.items()}


def base(**changes: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    """A released-layout base with tensors changed, or dropped where None."""
    shapes = dict(dit_shapes(SMALL))
    for name, shape in changes.items():
        if shape is None:
            shapes.pop(name)
        else:
            shapes[name] = shape
    return tensors(shapes)


def refusal(found: dict[str, torch.Tensor]) -> str:
    with pytest.raises(ValueError) as caught:
        check_base(found, "transformer 'x.safetensors'")
    message = str(caught.value)
    assert message.startswith("transformer 'x.safetensors': ")
    return message


def test_the_released_key_list_is_the_architecture():
    released = {name: tuple(shape) for name, shape in json.loads((DATA / "step1x_keys.json").read_text()).items()}
    plain = {name: shape for name, shape in released.items() if not name.startswith("connector.")}
    assert transformer_shapes(TransformerSize(3072, 4096, 768, 19, 38), folded=False) == plain
    check_base(tensors(released), "transformer")


def test_the_released_autoencoder_is_the_architecture():
    assert autoencoder_shapes(128, (1, 2, 4, 4), 2) == vae_shapes(128)
    check_vae(tensors(vae_shapes(128)), "VAE")
    check_vae(tensors(vae_shapes(32, (1, 2), 1)), "VAE")


def test_step1x_v1_1_is_named():
    message = refusal(base(**{"connector.scale_factor": None}))
    assert "Step1X-Edit v1.1" in message
    assert "step1x-edit-i1258.safetensors" in message


def test_flux_dev_and_kontext_are_named():
    guidance = {f"guidance_in.{layer}_layer.{kind}": ((256, 256) if kind == "weight" else (256,))
                for layer in ("in", "out") for kind in ("weight", "bias")}
    assert "FLUX.1 dev or Kontext" in refusal(base(**guidance))
    assert "FLUX.1 schnell" in refusal(tensors(dit_shapes(SMALL, connector=False)))


def test_diffusers_layouts_are_named():
    plain = dit_shapes(SMALL, connector=False)
    zeros = {name: torch.zeros(shape) for name, shape in plain.items()}
    diffusers = flux_to_diffusers(zeros)
    assert "FLUX transformer in diffusers' names" in refusal(diffusers)
    dev = {**diffusers, "time_text_embed.guidance_embedder.linear_1.weight": torch.zeros(1)}
    assert "dev or Kontext in diffusers' names" in refusal(dev)
    step1x = {**diffusers, "time_embed.in_layer.weight": torch.zeros(1), "connector.scale_factor": torch.zeros(1)}
    assert "Step1X-Edit in diffusers' names" in refusal(step1x)


def test_other_files_are_named():
    assert "ComfyUI checkpoint" in refusal({f"model.diffusion_model.{k}": v for k, v in base().items()})
    assert "packed FE2E checkpoint" in refusal({f"transformer.{k}": v for k, v in base().items()})
    assert "LoRA" in refusal(tensors(lora_shapes(SMALL)))
    assert "autoencoder" in refusal(tensors(vae_shapes(32)))
    assert "no tensors" in refusal({})
    assert "Stable Diffusion" in describe(tensors({"model.diffusion_model.input_blocks.0.0.weight": (1,)}))


@pytest.mark.parametrize("name", ["double_blocks.1.txt_mlp.2.weight", "single_blocks.0.norm.key_norm.scale",
                                  "vector_in.in_layer.weight", "final_layer.linear.bias"])
def test_a_missing_tensor_is_named(name):
    message = refusal(base(**{name: None}))
    assert name in message
    assert "missing" in message


def test_a_block_missing_in_the_middle_is_noticed():
    shapes = {k: v for k, v in dit_shapes(SMALL).items() if not k.startswith("single_blocks.0.")}
    assert "single_blocks.0." in refusal(tensors(shapes))


@pytest.mark.parametrize(("name", "shape"), [
    ("double_blocks.0.img_attn.qkv.weight", (700, 256)), ("single_blocks.1.linear2.weight", (256, 1024)),
    ("time_in.in_layer.weight", (256, 128)), ("double_blocks.1.img_attn.norm.query_norm.scale", (64,)),
    ("single_blocks.1.linear1.bias", (1,)),
])
def test_a_wrong_shape_is_named_with_what_was_found_and_expected(name, shape):
    message = refusal(base(**{name: shape}))
    assert name in message
    assert str(shape) in message
    assert "expected" in message


def test_a_width_that_no_head_divides_is_refused():
    shapes = dit_shapes(GoldenConfig(hidden=192, depth=1, single=1, ctx=128, llm=64))
    assert "multiple of 128" in refusal(tensors(shapes))


def test_a_folded_transformer_is_no_base():
    folded = tensors(transformer_shapes(TransformerSize(256, 128, 768, 2, 2), folded=True))
    check_transformer(folded, "transformer")
    assert "folded already" in refusal(folded)
    folded["double_blocks.0.img_mod.lin.constant"] = torch.empty(5, device="meta")
    with pytest.raises(ValueError, match=r"double_blocks\.0\.img_mod\.lin\.constant.*\(5,\).*\(1536,\)"):
        check_transformer(folded, "transformer")


def test_wrong_autoencoders_are_named():
    with pytest.raises(ValueError, match="4 latent channels"):
        check_vae(tensors(vae_shapes(32) | {"decoder.conv_in.weight": (128, 4, 3, 3)}), "VAE")
    with pytest.raises(ValueError, match="in diffusers' names"):
        check_vae(vae_to_diffusers({k: torch.zeros(v) for k, v in vae_shapes(32).items()}), "VAE")
    shapes = dict(vae_shapes(32))
    del shapes["decoder.mid.attn_1.proj_out.weight"]
    with pytest.raises(ValueError, match=r"decoder\.mid\.attn_1\.proj_out\.weight"):
        check_vae(tensors(shapes), "VAE")
    with pytest.raises(ValueError, match="wrong shape"):
        check_vae(tensors(vae_shapes(32) | {"encoder.mid.block_1.conv1.weight": (128, 128, 1, 1)}), "VAE")


@pytest.mark.parametrize("number", ["999999999", "9" * 5000])
def test_a_block_number_without_end_takes_no_memory(number):
    """A key can claim a billion blocks; a list of all that they lack would take more memory than there is."""
    extra = torch.empty(1, device="meta")
    transformer, vae = base(), tensors(vae_shapes(32))
    tracemalloc.start()
    for prefix in ("double_blocks.", "single_blocks."):
        with pytest.raises(ValueError, match="transformer: .* missing"):
            check_transformer(transformer | {f"{prefix}{number}.linear1.weight": extra}, "transformer")
    for prefix in ("encoder.down.", "encoder.down.0.block."):
        with pytest.raises(ValueError, match="VAE: .* missing"):
            check_vae(vae | {f"{prefix}{number}.x.0.y": extra}, "VAE")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20


@pytest.mark.parametrize("name", ["decoder.conv_in.weight", "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"])
def test_shapes_that_are_none_are_refused(name):
    for shape in ((), (0,), (0, 3, 3, 3)):
        with pytest.raises(ValueError, match="^VAE: "):
            check_vae(tensors(vae_shapes(32)) | {name: torch.empty(shape, device="meta")}, "VAE")
