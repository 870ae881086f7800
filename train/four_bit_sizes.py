"""Four-bit Linears as far as their memory goes: what bitsandbytes keeps and makes, without its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WEIGHTS_A_SCALE, _SCALES_A_SCALE = 64, 256


class _FullWeight(torch.autograd.Function):
    """x (..., in) times a weight (out, in) that is made anew in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, columns: int) -> Tensor:
        ctx.shape = (rows, columns)
        return F.linear(x, x.new_empty(ctx.shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None


class FourBitSizes(nn.Linear):
    """A frozen Linear that holds as many bytes as bitsandbytes' Linear4bit with nested scales. It knows no weights:
    only for tensors without data."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        count = linear.weight.numel()
        self.weight = nn.Parameter(torch.empty(count // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.bias = linear.bias
        scales = -(-count // _WEIGHTS_A_SCALE)
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8), persistent=False)
        self.register_buffer("outer", torch.empty(-(-scales // _SCALES_A_SCALE)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        result = _FullWeight.apply(x, self.out_features, self.in_features)
        return result if self.bias is None else result + self.bias.to(x.dtype)


def store_in_four_bits(model: nn.Module, names: Sequence[str]) -> None:
    """Replace the named Linears of a model on the meta device."""
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, FourBitSizes(getattr(owner, child)))
