"""diffusers' FLUX transformer and autoencoder as FE2E uses them: built folded, and called as a `Velocity`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn

from fe2e_core.checkpoint import Checkpoint
from fe2e_core.folding import CONSTANT, install_constants, is_folded, modulation_modules
from fe2e_core.keymaps import diffusers_modules, flux_to_diffusers, vae_to_diffusers
from fe2e_core.packing import Velocity
from fe2e_core.tensorfile import meta
from train.config import AutoencoderShape, TransformerShape

LATENT_CHANNELS = 16
SCALE, SHIFT = 0.3611, 0.1159
"""FLUX latents are (posterior mean - SHIFT) * SCALE."""

_DOWNSAMPLINGS = 3


def velocity_of(transformer: FluxTransformer2DModel) -> Velocity:
    """diffusers' transformer behind the protocol of `fe2e_core.packing`. It multiplies the time step by 1000 itself."""

    def velocity(
        tokens: Tensor, ids: Tensor, context: Tensor, context_ids: Tensor, timestep: Tensor, pooled: Tensor
    ) -> Tensor:
        return transformer(
            hidden_states=tokens,
            img_ids=ids[0],
            encoder_hidden_states=context,
            txt_ids=context_ids[0],
            timestep=timestep,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    return velocity


def build_transformer(shape: TransformerShape) -> FluxTransformer2DModel:
    """A fresh FLUX-shaped transformer whose modulation layers are constants from the start, all of it trainable.

    With the time step and the prompt fixed, a modulation layer can say only one thing, so that is what is learned.
    Gates start at one, so that every block takes part from the first step; shifts and scales start at zero.
    """
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=shape.double_blocks,
        num_single_layers=shape.single_blocks,
        attention_head_dim=128,
        num_attention_heads=shape.width // 128,
        joint_attention_dim=shape.context_width,
        pooled_projection_dim=shape.pooled_width,
        guidance_embeds=False,
    )
    sizes = {
        name.removesuffix(".weight"): module.shape[0]
        for name, module in transformer.named_parameters()
        if name.endswith(("norm1.linear.weight", "norm1_context.linear.weight", ".norm.linear.weight"))
        or name == "norm_out.linear.weight"
    }
    install_constants(transformer, sizes, torch.float32)
    width = shape.width
    with torch.no_grad():
        for name in sizes:
            constant = transformer.get_submodule(name).constant
            constant.requires_grad_(True)
            constant.zero_()
            chunks = constant.view(-1, width)
            if len(chunks) == 6:
                chunks[2], chunks[5] = 1, 1
            elif len(chunks) == 3:
                chunks[2] = 1
        nn.init.zeros_(transformer.proj_out.weight)
        nn.init.zeros_(transformer.proj_out.bias)
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            _shrink_residual(block, shape.double_blocks + shape.single_blocks)
    # What made the modulation's input plays no part any more.
    transformer.time_text_embed.requires_grad_(False)
    return transformer


def _shrink_residual(block: nn.Module, depth: int) -> None:
    """Scale the layers that write into the residual stream by 1/sqrt(2 depth), as GPT-2 does."""
    factor = (2 * depth) ** -0.5
    for name, parameter in block.named_parameters():
        if name in ("proj_out.weight", "attn.to_out.0.weight", "attn.to_add_out.weight", "ff.net.2.weight",
                    "ff_context.net.2.weight"):
            parameter.mul_(factor)


def build_autoencoder(shape: AutoencoderShape) -> AutoencoderKL:
    """A fresh autoencoder of the FLUX form: 16 channels, 8 times smaller, no quant convolutions, mid attention."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * (_DOWNSAMPLINGS + 1),
        up_block_types=("UpDecoderBlock2D",) * (_DOWNSAMPLINGS + 1),
        block_out_channels=tuple(shape.width * m for m in shape.multipliers),
        layers_per_block=shape.blocks,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        force_upcast=False,
    )


def encode(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures (B,3,H,W) in [-1,1] -> FLUX latents (B,16,H/8,W/8): the posterior's mean, shifted and scaled."""
    return (autoencoder.encode(pictures).latent_dist.mean - SHIFT) * SCALE


def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """FLUX latents (B,16,h,w) -> pictures (B,3,8h,8w), not clamped."""
    return autoencoder.decode(latents / SCALE + SHIFT).sample


def load_transformer(checkpoint: Checkpoint) -> FluxTransformer2DModel:
    """The transformer of an FE2E checkpoint in diffusers, float32, sizes read from the weights."""
    weights = {name: checkpoint.transformer[name].float() for name in checkpoint.transformer}
    transformer = FluxTransformer2DModel(
        in_channels=weights["img_in.weight"].shape[1],
        num_layers=1 + max(_block_numbers(weights, "double_blocks"), default=-1),
        num_single_layers=1 + max(_block_numbers(weights, "single_blocks"), default=-1),
        attention_head_dim=128,
        num_attention_heads=weights["img_in.weight"].shape[0] // 128,
        joint_attention_dim=weights["txt_in.weight"].shape[1],
        pooled_projection_dim=weights["vector_in.in_layer.weight"].shape[1],
        guidance_embeds=False,
    )
    if is_folded(weights):
        install_constants(
            transformer,
            {diffusers_modules(m)[0]: weights[f"{m}.{CONSTANT}"].numel() for m in modulation_modules(weights)},
            torch.float32,
        )
    transformer.load_state_dict(flux_to_diffusers(weights), strict=True)
    return transformer.eval().requires_grad_(False)


def autoencoder_shape(weights: Mapping[str, Tensor]) -> AutoencoderShape:
    """The shape of a FLUX autoencoder, from its names and shapes (`ae.safetensors` names)."""
    levels = [meta(weights, f"encoder.down.{i}.block.0.conv1.weight").shape[0] for i in range(_DOWNSAMPLINGS + 1)]
    blocks = 1 + max(
        int(name.split(".")[4]) for name in weights if name.startswith("encoder.down.0.block.")
    )
    width = meta(weights, "encoder.conv_in.weight").shape[0]
    return AutoencoderShape(width=width, multipliers=tuple(c // width for c in levels), blocks=blocks)


def load_autoencoder(checkpoint: Checkpoint) -> AutoencoderKL:
    """The autoencoder of an FE2E checkpoint in diffusers, float32, sizes read from the weights."""
    weights = {name: checkpoint.vae[name].float() for name in checkpoint.vae}
    autoencoder = build_autoencoder(autoencoder_shape(weights))
    autoencoder.load_state_dict(vae_to_diffusers(weights), strict=True)
    return autoencoder.eval().requires_grad_(False)


def _block_numbers(weights: Mapping[str, Tensor], kind: str) -> list[int]:
    return [int(name.split(".")[1]) for name in weights if name.startswith(kind + ".")]
