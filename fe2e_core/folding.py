"""Folding: a Linear whose input never changes is a constant.

Every modulation layer of the transformer computes `lin(silu(vec))`, and with the time step and the prompt fixed
`vec` never changes. Storing the outputs instead of the Linears drops 3.25 of 11.9 billion parameters; the output
is the same to the last bit as long as the constants are computed in the dtype the transformer runs in.

A folded tensor is named `<module>.constant`. The file also keeps `silu(vec)`, so that a LoRA given later for a
modulation layer becomes a change of its constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditioning import TIMESTEP, Conditioning, timestep_embedding

_MODULATION = re.compile(r"(double_blocks\.\d+\.(img|txt)_mod\.lin|single_blocks\.\d+\.modulation\.lin"
                         r"|final_layer\.adaLN_modulation\.1)")
CONSTANT = "constant"
_GUIDANCE = "guidance_in."


class Constant(nn.Module):
    """Stands where a modulation Linear stood and returns its constant output, whatever it is given.

    A plain module with one Parameter: frameworks move it, save it and count its memory like any other, and the
    transformer around it needs no change. forward: (..., in) -> (..., out).
    """

    def __init__(self, features: int, dtype: torch.dtype | None = None, device: torch.device | None = None):
        super().__init__()
        self.constant = nn.Parameter(torch.empty(features, dtype=dtype, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.constant.to(device=x.device, dtype=x.dtype).expand(*x.shape[:-1], -1)


def is_modulation(module: str) -> bool:
    """Whether a FLUX module name is one of those whose input is constant."""
    return _MODULATION.fullmatch(module) is not None


def modulation_modules(names: Iterable[str]) -> list[str]:
    """The modulation modules among tensor names (`....weight`, `....bias` or `....constant`), sorted."""
    return sorted({name.rpartition(".")[0] for name in names if is_modulation(name.rpartition(".")[0])})


def is_folded(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a folded transformer."""
    return any(name.endswith("." + CONSTANT) and is_modulation(name.rpartition(".")[0]) for name in names)


def has_guidance(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a transformer that is told its guidance (FLUX.1 dev, Kontext)."""
    return f"{_GUIDANCE}in_layer.weight" in names


def is_folded_away(name: str) -> bool:
    """Whether a folded transformer does without this tensor: its guidance is in the constants."""
    return name.startswith(_GUIDANCE)


def modulation_input(weights: Mapping[str, Tensor], conditioning: Conditioning, dtype: torch.dtype) -> Tensor:
    """silu(vec), (1, hidden): what every modulation layer is given at t = 1.

    Computed in the dtype the transformer runs in and in its order of operations, so that the folded constants
    equal what it would have computed. Raises ValueError for a transformer with a guidance input when the
    conditioning says no guidance.
    """
    device = conditioning.pooled.device

    def embed(x: Tensor, name: str) -> Tensor:
        for layer in ("in_layer", "out_layer"):
            if layer == "out_layer":
                x = F.silu(x)
            x = F.linear(x, weights[f"{name}.{layer}.weight"].to(device, dtype), weights[f"{name}.{layer}.bias"].to(device, dtype))
        return x

    def scalar(value: float) -> Tensor:
        return timestep_embedding(torch.full((1,), value, device=device)).to(dtype)

    vec = embed(scalar(TIMESTEP), "time_in")
    if has_guidance(weights):
        if conditioning.guidance is None:
            raise ValueError("conditioning: this transformer has a guidance input (FLUX.1 dev, Kontext) and no guidance is given; "
                             "give the one it was trained with")
        # the embedding counts guidance in thousandths, as it does time
        vec = vec + embed(scalar(TIMESTEP * conditioning.guidance), "guidance_in")
    return F.silu(vec + embed(conditioning.pooled.to(dtype), "vector_in"))


def fold_module(weight: Tensor, bias: Tensor, silu_vec: Tensor) -> Tensor:
    """The constant output (out,) of one modulation Linear, in silu_vec's dtype and on its device."""
    return F.linear(silu_vec, weight.to(silu_vec), bias.to(silu_vec))[0]


def fold(weights: Mapping[str, Tensor], silu_vec: Tensor) -> dict[str, Tensor]:
    """Public FLUX weights -> folded weights; everything but the modulation Linears is passed through, and a guidance
    input left out: a folded FLUX.1 dev or Kontext is a transformer without guidance."""
    folded: dict[str, Tensor] = {}
    for name in weights:
        module, _, kind = name.rpartition(".")
        if is_folded_away(name):
            continue
        if not is_modulation(module):
            folded[name] = weights[name]
        elif kind == "weight":
            folded[f"{module}.{CONSTANT}"] = fold_module(weights[name], weights[module + ".bias"], silu_vec).cpu()
    return folded


def install_constants(transformer: nn.Module, features: Mapping[str, int], dtype: torch.dtype | None = None) -> None:
    """Put a `Constant` in the place of each named Linear, before the weights are loaded.

    features: module name as this transformer calls it -> length of its constant. Works on ComfyUI's Flux and on
    diffusers'. Never on a live model: swapping modules there would change every clone of it.
    """
    for module, size in features.items():
        parent, _, child = module.rpartition(".")
        old = transformer.get_submodule(module)
        parameter = next(old.parameters(), None)
        device = None if parameter is None else parameter.device
        setattr(transformer.get_submodule(parent), child, Constant(size, dtype=dtype, device=device))
