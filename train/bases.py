"""The network that a fine-tuning run starts from, in diffusers: what it needs is read from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn

from fe2e_core.checkpoint import Checkpoint, CheckpointInfo, read_checkpoint
from fe2e_core.conditioning import TIMESTEP, Conditioning
from fe2e_core.emptyprompt import read_conditioning
from fe2e_core.files import sha256
from fe2e_core.folding import (
    CONSTANT,
    fold,
    has_guidance,
    install_constants,
    is_folded,
    modulation_input,
    modulation_modules,
)
from fe2e_core.keymaps import diffusers_modules, flux_to_diffusers
from fe2e_core.packing import Velocity
from fe2e_core.quantized import Dequantized
from fe2e_core.recognition import check_transformer
from fe2e_core.tensorfile import TensorFile
from train.backend import load_autoencoder
from train.float8 import store_in_float8
from train.low_bit import store_in_nf4
from train.recipe import BaseFiles

#: What a base is computed in, by `BaseFiles.dtype`.
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16, "nf4": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """A frozen base. `names`: the transformer's tensors in public FLUX names; `constants`: its folded
    constants, before training; `silu_vec` where known; `digest`: SHA-256 of the transformer's file."""

    transformer: FluxTransformer2DModel
    autoencoder: AutoencoderKL
    conditioning: Conditioning
    silu_vec: Tensor | None
    names: tuple[str, ...]
    constants: dict[str, Tensor]
    file: str
    digest: str

    def velocity(self, model: Callable) -> Velocity:
        """`model` (this transformer, or a wrapper around it) as a `Velocity`."""
        guided = self.transformer.config.guidance_embeds

        def velocity(
            tokens: Tensor,
            ids: Tensor,
            context: Tensor,
            context_ids: Tensor,
            timestep: Tensor,
            pooled: Tensor,
        ) -> Tensor:
            dtype = self.transformer.dtype
            # a placeholder, see _fix_guidance
            guidance = torch.ones(len(tokens), device=tokens.device, dtype=dtype) if guided else None
            return model(
                hidden_states=tokens.to(dtype),
                img_ids=ids[0],
                encoder_hidden_states=context.to(dtype),
                txt_ids=context_ids[0],
                timestep=timestep.to(dtype),
                pooled_projections=pooled.to(dtype),
                guidance=guidance,
                return_dict=False,
            )[0]

        return velocity


def open_base(files: BaseFiles, digest: bool = True) -> Base:
    """Read a base. Raises FileNotFoundError, and ValueError when a file is not what it should be.

    digest: note the SHA-256 of the transformer's file, which takes a read of all of it.
    """
    dtype = DTYPES[files.dtype]
    with ExitStack() as stack:
        if files.checkpoint:
            path = files.checkpoint
            checkpoint = read_checkpoint(stack.enter_context(TensorFile(path, "checkpoint")))
            conditioning = checkpoint.conditioning
        else:
            path = files.transformer
            file = stack.enter_context(TensorFile(path, "transformer"))
            vae = stack.enter_context(TensorFile(files.vae, "VAE"))
            transformer = Dequantized(file, file.metadata, f"transformer '{file.path.name}'")
            check_transformer(transformer, f"transformer '{file.path.name}'")
            conditioning = read_conditioning(
                files.prompt_cache or files.conditioning,
                transformer,
                file.metadata.get("connector_heads", ""),
                files.guidance,
            )
            checkpoint = Checkpoint(CheckpointInfo(name=""), transformer, vae, conditioning, None)
        weights = {
            k: checkpoint.transformer[k].to(dtype)
            for k in checkpoint.transformer
            if not k.startswith("connector.")
        }
        silu_vec = checkpoint.silu_vec
        if files.fold and not is_folded(weights):
            # constants in float32, whatever the layers ran in: they cost 4 MB and are trained in it
            silu_vec = modulation_input(weights, conditioning, torch.float32)
            weights = fold(weights, silu_vec)
        model = build_empty(weights)
        if has_guidance(weights):
            _fix_guidance(model, conditioning.guidance)
        model.load_state_dict(flux_to_diffusers(weights), strict=True, assign=True)
        model.requires_grad_(False)
        store_frozen(model, files.dtype)
        return Base(
            transformer=model,
            autoencoder=load_autoencoder(checkpoint),
            conditioning=conditioning,
            silu_vec=silu_vec,
            names=tuple(weights),
            constants={k: v.clone() for k, v in weights.items() if k.endswith("." + CONSTANT)},
            file=Path(path).name,
            digest=sha256(path) if digest else "",
        )


def store_frozen(transformer: FluxTransformer2DModel, dtype: str) -> None:
    """Store the frozen Linears of the blocks as `BaseFiles.dtype` says, where they are not so already."""
    if dtype == "fp8":
        store_in_float8(transformer, block_linears(transformer))
    elif dtype == "nf4":
        store_in_nf4(transformer, block_linears(transformer))


def block_linears(transformer: FluxTransformer2DModel) -> list[str]:
    """Names of every Linear of every block; a folded modulation layer is none."""
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("transformer_blocks.", "single_transformer_blocks."))
    ]


def _fix_guidance(model: FluxTransformer2DModel, guidance: float) -> None:
    """Have the model use exactly this guidance, whatever it is called with.

    diffusers multiplies by 1000 in the transformer's dtype, where BF16 makes 3504 of 3500: another angle in
    every sine, and not what ComfyUI computes."""

    def replace_guidance(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        timestep, given, pooled = inputs
        exact = torch.full_like(given, TIMESTEP * guidance, dtype=torch.float32)
        return timestep, exact, pooled

    model.time_text_embed.register_forward_pre_hook(replace_guidance)


def build_empty(weights: Mapping[str, Tensor]) -> FluxTransformer2DModel:
    """A transformer without data of the weights' sizes, folded as they are; only their shapes are read."""

    def count(kind: str) -> int:
        return 1 + max(
            (int(name.split(".")[1]) for name in weights if name.startswith(kind + ".")), default=-1
        )

    with torch.device("meta"):
        model = FluxTransformer2DModel(
            in_channels=weights["img_in.weight"].shape[1],
            num_layers=count("double_blocks"),
            num_single_layers=count("single_blocks"),
            attention_head_dim=128,
            num_attention_heads=weights["img_in.weight"].shape[0] // 128,
            joint_attention_dim=weights["txt_in.weight"].shape[1],
            pooled_projection_dim=weights["vector_in.in_layer.weight"].shape[1],
            guidance_embeds=has_guidance(weights),
        )
    if is_folded(weights):
        sizes = {
            diffusers_modules(m)[0]: weights[f"{m}.{CONSTANT}"].numel() for m in modulation_modules(weights)
        }
        install_constants(model, sizes)
    return model
