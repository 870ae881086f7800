"""Our pass for one picture, by stage: the functions that 'Estimate Depth+Normal' runs, in its order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.sizes import ModelSize
from benchmarks.timing import Clock, module_bytes


class OurProcedure:
    """An FE2E_MODEL and its stages. pack_module: imports a module of the pack, which has a name of
    its own.

    dtype: name as in Load FE2E Model ("default", "fp32", "bf16", "fp8_e4m3fn"). fold: as the node does; without it the
    modulation layers stay, to see what folding alone saves.
    """

    def __init__(
        self,
        size: ModelSize,
        tensors: Mapping[str, Tensor],
        vae: object,
        prompt: tuple[Tensor, Tensor],
        dtype: str,
        pack_module: Callable[[str], ModuleType],
        fold: bool = True,
    ):
        self.backend, self.estimation, self.sizing = (
            pack_module(f"{name}") for name in ("nodes.backend", "nodes.estimation", "fe2e_core.sizing")
        )
        types, conditioning = pack_module("nodes.types"), pack_module("fe2e_core.conditioning")
        info = pack_module("fe2e_core.checkpoint").CheckpointInfo(name=f"random, {size.name}")
        constant = conditioning.constant_conditioning(tensors, *prompt, max(1, size.context_width // 128))
        patcher, silu_vec = self.backend.build_transformer(
            tensors, constant, None, pack_module("nodes.weights").WEIGHT_DTYPES[dtype], fold
        )
        # Wherever it was computed, an FE2E_MODEL has it on the CPU.
        constant = replace(constant, context=constant.context.cpu(), pooled=constant.pooled.cpu())
        self.model = types.FE2EModel(patcher, vae, constant, silu_vec if silu_vec is None else silu_vec.cpu(), info)
        self.normal_from_network = pack_module("fe2e_core.geometry").normal_from_network

    @property
    def transformer(self) -> nn.Module:
        return self.model.patcher.model.diffusion_model

    def weight_bytes(self) -> int:
        """Bytes of all weights it keeps: transformer, constant conditioning, autoencoder."""
        model = self.model
        constant = (model.conditioning.context, model.conditioning.pooled, model.silu_vec)
        modules = module_bytes(self.transformer) + module_bytes(model.vae.first_stage_model)
        return modules + sum(tensor.nbytes for tensor in constant if tensor is not None)

    @torch.inference_mode()
    def latents(self, image: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """(1,H,W,3) picture -> depth and normal latents, at the picture's own size."""
        with clock.stage("encode"):
            frame = self.sizing.fit(*image.shape[1:3], "native")
            latent = self.backend.encode(self.model, self.sizing.to_model(image, frame))
        with clock.stage("transformer"):
            return self.backend.transform(self.model, latent)

    @torch.inference_mode()
    def __call__(self, image: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """(1,H,W,3) -> log-depth (1,H,W) in [-1,1] and OpenCV normals (1,H,W,3), as in FE2E_GEOMETRY."""
        latents = self.latents(image, clock)
        with clock.stage("decode"):
            depth, normal = (self.backend.decode(self.model, latent) for latent in latents)
        with clock.stage("geometry"):
            frame = self.sizing.fit(*image.shape[1:3], "native")
            log_depth = self.sizing.from_model(depth.mean(dim=-1), frame).clamp(-1, 1)
            normals = self.normal_from_network(self.sizing.from_model(normal, frame))
        return log_depth, normals
