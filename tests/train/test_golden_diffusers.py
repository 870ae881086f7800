"""Golden parity through diffusers' Flux and autoencoder, with our key maps."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from fe2e_core.conditioning import constant_conditioning
from fe2e_core.folding import CONSTANT, fold, install_constants, modulation_input, modulation_modules
from fe2e_core.keymaps import (
    diffusers_modules,
    diffusers_to_flux,
    flux_to_diffusers,
    vae_from_diffusers,
    vae_to_diffusers,
)
from fe2e_core.lora import match_lora, merge
from fe2e_core.packing import predict_latents
from tests.harness.golden import dit_weights, load_golden, lora_weights, vae_weights


def build(config) -> FluxTransformer2DModel:
    with torch.device("meta"):
        return FluxTransformer2DModel(
            in_channels=64, num_layers=config.depth, num_single_layers=config.single, attention_head_dim=128,
            num_attention_heads=config.hidden // 128, joint_attention_dim=config.ctx, pooled_projection_dim=768)


def velocity_of(model):
    def velocity(tokens, ids, context, context_ids, timestep, pooled):
        return model(hidden_states=tokens, img_ids=ids[0], encoder_hidden_states=context, txt_ids=context_ids[0],
                     timestep=timestep, pooled_projections=pooled, return_dict=False)[0]
    return velocity


def weights_of(golden) -> dict[str, torch.Tensor]:
    weights = {k: v.float() for k, v in dit_weights(golden.config).items()}
    if golden.config.lora:
        for module, lora in match_lora(lora_weights(golden.config), weights).items():
            # The reference merges in float32 and rounds to the stored dtype.
            weights[f"{module}.weight"] = merge(weights[f"{module}.weight"].bfloat16(), lora).float()
    return weights


@pytest.mark.parametrize("name", ["base", "lora"])
@torch.inference_mode()
def test_latents_equal_the_reference(name):
    golden = load_golden(name)
    weights = weights_of(golden)
    model = build(golden.config)
    model.load_state_dict(flux_to_diffusers(weights), assign=True, strict=True)
    conditioning = constant_conditioning(weights, golden.tensors["embeds"], golden.tensors["masks"], golden.config.ctx_heads)
    depth, normal = predict_latents(velocity_of(model), golden.tensors["fp32.image_latent"], conditioning)
    torch.testing.assert_close(depth, golden.tensors["fp32.depth_latent"], atol=2e-5, rtol=0)
    torch.testing.assert_close(normal, golden.tensors["fp32.normal_latent"], atol=2e-5, rtol=0)


@torch.inference_mode()
def test_folding_leaves_the_output_unchanged():
    golden = load_golden("base")
    weights = weights_of(golden)
    conditioning = constant_conditioning(weights, golden.tensors["embeds"], golden.tensors["masks"], golden.config.ctx_heads)
    latent = golden.tensors["fp32.image_latent"]
    whole = build(golden.config)
    whole.load_state_dict(flux_to_diffusers(weights), assign=True, strict=True)

    folded_weights = fold({k: v for k, v in weights.items() if not k.startswith("connector.")},
                          modulation_input(weights, conditioning, torch.float32))
    folded = build(golden.config)
    install_constants(folded, {diffusers_modules(m)[0]: folded_weights[f"{m}.{CONSTANT}"].numel()
                               for m in modulation_modules(folded_weights)})
    folded.load_state_dict(flux_to_diffusers(folded_weights), assign=True, strict=True)
    for a, b in zip(predict_latents(velocity_of(whole), latent, conditioning),
                    predict_latents(velocity_of(folded), latent, conditioning), strict=True):
        assert torch.equal(a, b)


def test_names_survive_the_way_there_and_back():
    golden = load_golden("base")
    weights = dit_weights(golden.config, connector=False)
    back = diffusers_to_flux(flux_to_diffusers(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[k], weights[k]) for k in weights)


@torch.inference_mode()
def test_autoencoder_through_diffusers():
    golden = load_golden("base")
    ch = golden.config.ch
    vae = AutoencoderKL(in_channels=3, out_channels=3, latent_channels=16, layers_per_block=2,
                        block_out_channels=(ch, 2 * ch, 4 * ch, 4 * ch), norm_num_groups=32,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                        use_quant_conv=False, use_post_quant_conv=False)
    weights = {k: v.float() for k, v in vae_weights(golden.config).items()}
    converted = vae_to_diffusers(weights)
    vae.load_state_dict(converted, strict=True)
    image = golden.tensors["image"].float().permute(2, 0, 1)[None] / 127.5 - 1
    latent = (vae.encode(image).latent_dist.mean - 0.1159) * 0.3611
    torch.testing.assert_close(latent, golden.tensors["fp32.image_latent"], atol=2e-5, rtol=0)
    back = vae_from_diffusers(converted)
    assert back.keys() == weights.keys() and all(torch.equal(back[k], weights[k]) for k in weights)
