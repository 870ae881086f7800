"""cuDNN's attention, on the cards where it was measured to be quicker than what ComfyUI asks torch for first."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import comfy.ldm.flux.math
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Compute capabilities where it was measured (docs/benchmarks.md: a pass of the transformer takes 17 to 19 % less on
#: an H100). By rule, not by timing: the same input must always give the same bits.
QUICKER_ON = ((9, 0),)
#: torch takes the first of them that can do it; the last one always can. Older versions of torch lack some.
ORDER = [getattr(SDPBackend, f"{name}_ATTENTION") for name in ("CUDNN", "FLASH", "EFFICIENT") if hasattr(SDPBackend, f"{name}_ATTENTION")]
ORDER.append(SDPBackend.MATH)
_TAKES_AN_ORDER = "set_priority" in inspect.signature(sdpa_kernel).parameters


def is_quicker(device: torch.device) -> bool:
    """Whether `cudnn_first` is to be used: on a card of the list, where the user's ComfyUI has PyTorch's attention anyway (not
    sage, flash or xformers, which somebody asked for)."""
    return (_TAKES_AN_ORDER and device.type == "cuda" and torch.version.hip is None and torch.backends.cudnn.is_available()
            and comfy.ldm.flux.math.optimized_attention.__name__ == "attention_pytorch"
            and torch.cuda.get_device_capability(device) in QUICKER_ON)


def cudnn_first(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **options: object) -> Tensor:
    """An attention override of ComfyUI's: `function` is its own attention and does what this does not, which is anything but
    q, k, v (B,heads,L,head width) without a mask -> (B,L,heads * head width)."""
    usual = options.get("skip_reshape") and not options.get("skip_output_reshape") and not options.get("enable_gqa")
    if not usual or options.get("mask") is not None or options.get("scale") is not None:
        return function(q, k, v, heads, **options)
    with sdpa_kernel(ORDER, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)
