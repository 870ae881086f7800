"""Noticing that float16 overflowed, and computing in a wider dtype then.

ComfyUI's Flux replaces NaN by 0 and infinity by the largest number after its blocks when it runs in float16. The
result is finite and wrong (black, flat, or patches of either), so looking at the result is not enough.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import comfy.model_management as mm
import comfy.model_patcher
import torch
from torch import Tensor, nn

from .types import FE2EModel

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """What was seen during a pass."""

    flags: list[Tensor] = field(default_factory=list)

    def overflowed(self) -> bool:
        """Whether a number left the range; the only moment that waits for the device."""
        return any(bool(flag) for flag in self.flags)


def compute_dtype(patcher: comfy.model_patcher.ModelPatcher) -> torch.dtype:
    """The dtype a model computes in once it is loaded, a core node's choice included."""
    return patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()


@contextmanager
def watch(patcher: comfy.model_patcher.ModelPatcher) -> Iterator[Watch]:
    """Look at what every layer and block of the transformer puts out, in float16 only: wider dtypes do not overflow."""
    seen = Watch()
    if compute_dtype(patcher) != torch.float16:
        yield seen
        return
    largest = torch.finfo(torch.float16).max

    def look(module: nn.Module, inputs: object, output: object) -> None:
        for part in output if isinstance(output, tuple) else (output,):
            if isinstance(part, Tensor) and part.dtype == torch.float16:
                # NaN is not below the largest number either.
                seen.flags.append(~(part.abs() < largest).all())

    transformer = patcher.model.diffusion_model
    watched = [module for name, module in transformer.named_modules()
               if isinstance(module, nn.Linear) or name.rpartition(".")[0] in ("double_blocks", "single_blocks")]
    handles = [module.register_forward_hook(look) for module in watched]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def wider(model: FE2EModel) -> FE2EModel:
    """The same model computing in a dtype of larger range: float16 -> bfloat16 (where fast) -> float32.

    Raises RuntimeError for float32: then the weights themselves are broken.
    """
    dtype = compute_dtype(model.patcher)
    if dtype == torch.float32:
        hint = ("choose another 'weight_dtype' when loading, these weights do not fit into float16"
                if model.patcher.model.get_dtype() == torch.float16 else
                "the file or a LoRA is broken, or the LoRA's strength is far too high")
        raise RuntimeError(f"transformer '{model.info.name}': its results are NaN or infinite even in float32; {hint}")
    target = torch.float32
    if dtype == torch.float16 and mm.should_use_bf16(model.patcher.load_device):
        target = torch.bfloat16
    logger.warning("FE2E: the transformer overflows in %s; going on in %s", _name(dtype), _name(target))
    copy = model.patcher.clone()
    copy.set_model_compute_dtype(target)
    return replace(model, patcher=copy)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
