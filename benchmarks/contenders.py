"""The ways of running one picture that are measured against each other, and building them with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks import models
from benchmarks.ours import OurProcedure
from benchmarks.reference_procedure import ReferenceProcedure
from benchmarks.sizes import ModelSize
from tests.harness import inprocess


@dataclass(frozen=True)
class Variant:
    """weight_dtype: as Load FE2E Model names it. folded: of ours, whether modulation layers are constants. compiled:
    through ComfyUI's torch.compile wrapper, as its node does.
    """

    title: str
    weight_dtype: str
    reference: bool = False
    compiled: bool = False
    folded: bool = True


def build(variant: Variant, size: ModelSize, drawn: torch.dtype, device: str) -> ReferenceProcedure | OurProcedure:
    """The contender, its weights drawn in the dtype `drawn` on `device`. ComfyUI has to be imported before."""
    backend = inprocess.pack_module("nodes.backend")
    tensors = models.transformer(size, drawn, device)
    vae, prompt = backend.build_vae(models.autoencoder(size)), models.prompt(size)
    if variant.reference:
        return ReferenceProcedure(size, tensors, vae, prompt, drawn)
    contender = OurProcedure(
        size, tensors, vae, prompt, variant.weight_dtype, inprocess.pack_module, variant.folded
    )
    if variant.compiled:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        set_torch_compile_wrapper(model=contender.model.patcher, backend="inductor")
    return contender


def flux_of(contender: ReferenceProcedure | OurProcedure) -> torch.nn.Module:
    patcher = contender.model.patcher if isinstance(contender, OurProcedure) else contender.patcher
    return patcher.model.diffusion_model


@contextmanager
def watch_text_tokens(contender: ReferenceProcedure | OurProcedure) -> Iterator[list[int]]:
    """How many text tokens each pass sends through the transformer meanwhile, seen at its text input layer."""
    seen: list[int] = []
    hook = flux_of(contender).txt_in.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    try:
        yield seen
    finally:
        hook.remove()
