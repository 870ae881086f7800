"""The ways of running one picture that are measured against each other, and building them with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from benchmarks import models
from benchmarks.ours import OurProcedure
from benchmarks.reference_procedure import ReferenceProcedure
from benchmarks.sizes import ModelSize
from tests.harness import inprocess


@dataclass(frozen=True)
class Variant:
    """weight_dtype: as Load FE2E Model names it. folded: of ours, whether modulation layers are constants. compiled:
    "model" as ComfyUI's TorchCompileModel does it, or "blocks": through the same wrapper, each block for itself, which
    compiles two kinds of block instead of one long graph. attention: "" for ComfyUI's order, or "cudnn"; the
    nodes themselves choose between the two by the card (`nodes/attention.py`).
    """

    title: str
    weight_dtype: str
    reference: bool = False
    compiled: str = ""
    folded: bool = True
    attention: str = ""


def build(variant: Variant, size: ModelSize, drawn: torch.dtype, device: str) -> ReferenceProcedure | OurProcedure:
    """The contender, its weights drawn in the dtype `drawn` on `device`. ComfyUI has to be imported before.

    On a GPU the weights are made where they are used: taking 24 GB through the main memory and back would need most
    of a benchmark's time and is what `benchmarks.loading` measures.
    """
    backend = inprocess.pack_module("nodes.backend")
    on_card = torch.device(device).type != "cpu"
    vae = backend.build_vae(models.autoencoder(size, device))
    prompt = tuple(tensor.to(device) for tensor in models.prompt(size))
    tensors = models.transformer(size, drawn, device, kept=on_card)
    with _made_on_the_card(on_card):
        if variant.reference:
            contender = ReferenceProcedure(size, tensors, vae, prompt, drawn)
            _offload_to_main_memory(contender.patcher)
            return contender
        contender = OurProcedure(
            size, tensors, vae, prompt, variant.weight_dtype, inprocess.pack_module, variant.folded
        )
    _offload_to_main_memory(contender.model.patcher)
    if variant.compiled:
        contender.model = replace(
            contender.model, patcher=compiled(contender.model.patcher, size, variant.compiled == "blocks")
        )
    return contender


def compiled(patcher: object, size: ModelSize, blocks: bool, backend: str = "inductor") -> object:
    """A clone of ComfyUI's patcher that compiles the transformer, with the options of its TorchCompileModel node."""
    import comfy_extras.nodes_torch_compile as core
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # Guessing which sizes change ends in an assertion for fp8 products (PyTorch 2.11): one picture size is measured.
    torch._dynamo.config.automatic_dynamic_shapes = False
    clone = patcher.clone(disable_dynamic=True)
    keys = ["diffusion_model"]
    if blocks:
        counts = {"double_blocks": size.doubles, "single_blocks": size.singles}
        keys = [f"diffusion_model.{name}.{i}" for name, count in counts.items() for i in range(count)]
    options = {"guard_filter_fn": core.skip_torch_compile_dict}
    set_torch_compile_wrapper(model=clone, backend=backend, options=options, keys=keys)
    return clone


@contextmanager
def _made_on_the_card(on_card: bool) -> Iterator[None]:
    """ComfyUI makes models where they run meanwhile, as with --highvram; afterwards its state is as before."""
    import comfy.model_management as management

    before = management.vram_state
    if on_card:
        management.vram_state = management.VRAMState.HIGH_VRAM
    try:
        yield
    finally:
        management.vram_state = before


def _offload_to_main_memory(patcher: object) -> None:
    """Where ComfyUI would have it without --highvram."""
    import comfy.model_management as management

    patcher.offload_device = management.unet_offload_device()


@contextmanager
def chosen_attention(variant: Variant) -> Iterator[None]:
    """The attention that a variant of ours names, whatever the card."""
    backend = inprocess.pack_module("nodes.backend")
    before = backend.is_quicker
    backend.is_quicker = lambda device: variant.attention == "cudnn"
    try:
        yield
    finally:
        backend.is_quicker = before


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
