"""The network that a fine-tuning run starts from, in diffusers: what it needs is read from its weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn

from fe2e_core.checkpoint import Checkpoint, CheckpointInfo, read_checkpoint
from fe2e_core.conditioning import Conditioning, constant_conditioning
from fe2e_core.files import sha256
from fe2e_core.folding import (
    CONSTANT,
    fold,
    install_constants,
    is_folded,
    modulation_input,
    modulation_modules,
)
from fe2e_core.keymaps import diffusers_modules, flux_to_diffusers
from fe2e_core.packing import Velocity
from fe2e_core.promptcache import read_prompt_cache
from fe2e_core.tensorfile import TensorFile
from train.backend import load_autoencoder
from train.float8 import store_in_float8
from train.recipe import BaseFiles

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}


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
    guidance: float

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
            guidance = (
                torch.full((len(tokens),), self.guidance, device=tokens.device, dtype=dtype)
                if guided
                else None
            )
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
    dtype = _DTYPES[files.dtype]
    with ExitStack() as stack:
        if files.checkpoint:
            path = files.checkpoint
            checkpoint = read_checkpoint(stack.enter_context(TensorFile(path, "checkpoint")))
        else:
            path = files.transformer
            transformer = stack.enter_context(TensorFile(path, "transformer"))
            vae = stack.enter_context(TensorFile(files.vae, "VAE"))
            checkpoint = Checkpoint(
                CheckpointInfo(name=""), transformer, vae, _conditioning(files, transformer), None
            )
        weights = {
            k: checkpoint.transformer[k].to(dtype)
            for k in checkpoint.transformer
            if not k.startswith("connector.")
        }
        silu_vec = checkpoint.silu_vec
        if files.fold and not is_folded(weights):
            if "guidance_in.in_layer.weight" in weights:
                raise ValueError(
                    f"base: '{Path(path).name}' has a guidance input, and folding knows none; set fold = "
                    "false"
                )
            # constants in float32, whatever the layers ran in: they cost 4 MB and are trained in it
            silu_vec = modulation_input(weights, checkpoint.conditioning, torch.float32)
            weights = fold(weights, silu_vec)
        model = _build(weights)
        model.load_state_dict(flux_to_diffusers(weights), strict=True, assign=True)
        model.requires_grad_(False)
        if files.dtype == "fp8":
            store_in_float8(model, block_linears(model))
        return Base(
            transformer=model,
            autoencoder=load_autoencoder(checkpoint),
            conditioning=checkpoint.conditioning,
            silu_vec=silu_vec,
            names=tuple(weights),
            constants={k: v.clone() for k, v in weights.items() if k.endswith("." + CONSTANT)},
            file=Path(path).name,
            digest=sha256(path) if digest else "",
            guidance=files.guidance,
        )


def block_linears(transformer: FluxTransformer2DModel) -> list[str]:
    """Names of every Linear of every block; a folded modulation layer is none."""
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("transformer_blocks.", "single_transformer_blocks."))
    ]


def _conditioning(files: BaseFiles, transformer: TensorFile) -> Conditioning:
    if files.prompt_cache:
        heads = transformer.metadata.get("connector_heads", "")
        embeds, mask = read_prompt_cache(files.prompt_cache)
        return constant_conditioning(transformer, embeds, mask, int(heads) if heads.isdigit() else None)
    with TensorFile(files.conditioning, "conditioning") as file:
        missing = [key for key in ("context", "pooled") if key not in file]
        if missing:
            raise ValueError(
                f"conditioning: '{file.path.name}' lacks {missing}; expected context (1,T,C) and pooled (1,P)"
            )
        return Conditioning(file["context"].float(), file["pooled"].float())


def _build(weights: dict[str, Tensor]) -> FluxTransformer2DModel:
    """An empty transformer of the weights' sizes, folded as they are."""

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
            guidance_embeds="guidance_in.in_layer.weight" in weights,
        )
    if is_folded(weights):
        sizes = {
            diffusers_modules(m)[0]: weights[f"{m}.{CONSTANT}"].numel() for m in modulation_modules(weights)
        }
        install_constants(model, sizes)
    return model
