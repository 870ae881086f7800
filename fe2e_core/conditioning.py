"""The constant conditioning: what Step1X-Edit's connector makes of the empty prompt at t = 1.

FE2E never changes the prompt or the time step, so the connector (0.54 B parameters in the release) has one
output for ever: a context of (1, tokens, width) and a pooled vector of (1, 768), about 5 MB. It is computed
here once, in float32, straight from the checkpoint's `connector.*` tensors; sizes are read from the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .merging import first_equal_rows
from .tensorfile import meta

CONNECTOR_PREFIX = "connector."
#: Width of one attention head in the released connector (4096 / 32); the weights do not show it.
HEAD_WIDTH = 128
#: The connector multiplies its time step by 1000 before the sinusoidal embedding.
TIMESTEP = 1000.0


@dataclass(frozen=True)
class Conditioning:
    """context (1,T,C) and pooled (1,P): constant inputs of the transformer, float32 unless stored otherwise.

    guidance: the constant guidance scale of a transformer that has an input for it (FLUX.1 dev, Kontext), else None.
    """

    context: Tensor
    pooled: Tensor
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.context.ndim != 3 or self.context.shape[0] != 1 or self.pooled.ndim != 2 or self.pooled.shape[0] != 1:
            raise ValueError(f"conditioning: context {tuple(self.context.shape)} and pooled {tuple(self.pooled.shape)}; "
                             "expected (1, tokens, width) and (1, width)")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"conditioning: guidance is {self.guidance}; expected a finite number such as 1 or 3.5")


def timestep_embedding(t: Tensor, width: int = 256) -> Tensor:
    """Sinusoidal embedding, cosine half first: (B,) -> (B, width), float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def constant_conditioning(weights: Mapping[str, Tensor], embeds: Tensor, mask: Tensor,
                          heads: int | None = None) -> Conditioning:
    """Run the connector once.

    weights: the checkpoint's tensors, of which those under `connector.` are read (any float dtype; computed in
    float32). embeds (T, width): the language model's embedding of the empty prompt. mask (T,): 1 where a token
    is real. heads: attention heads of the token refiner, by default one per 128 channels as in the release.
    The connector of Step1X-Edit v1.1 has no `scale_factor`: its pooled vector is made of the mean as it is.

    Raises ValueError for a connector that is not whole or not in shape, or when embeds and weights do not fit.
    """
    embeds = embeds.float()[None]
    mask = mask.to(embeds.device)

    def weight(name: str) -> Tensor:
        return weights[CONNECTOR_PREFIX + name].to(embeds.device, torch.float32)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weight(name + ".weight"), weight(name + ".bias"))

    prefix = "S.individual_token_refiner.blocks."
    depth = len({key.split(".")[4] for key in weights if key.startswith(CONNECTOR_PREFIX + prefix)})
    expected, heads = _check_connector(weights, [f"{prefix}{i}" for i in range(depth)], heads)
    if embeds.shape[-1] != expected:
        raise ValueError(f"prompt cache: embeddings are {embeds.shape[-1]} wide, this transformer's connector takes {expected}; "
                         "use the cache that belongs to it (latent/no_info.npz of the FE2E release)")

    real = mask.float()[None, :, None]
    mean = (embeds * real).sum(1) / real.sum(1)
    scale = 1 + weight("scale_factor") if CONNECTOR_PREFIX + "scale_factor" in weights else 1.0
    pooled = linear(mean * scale, "global_proj_out")

    time = timestep_embedding(torch.full((1,), TIMESTEP, device=embeds.device))
    time = linear(F.silu(linear(time, "S.t_embedder.mlp.0")), "S.t_embedder.mlp.2")
    gate_input = time + linear(F.silu(linear(mean, "S.c_embedder.linear_1")), "S.c_embedder.linear_2")

    x = linear(embeds, "S.input_embedder")
    # Padding tokens may attend to the first token only, so that no softmax row is empty.
    attend = mask.bool()[:, None] & mask.bool()[None, :]
    attend[:, 0] = True

    for i in range(depth):
        x = _refiner_block(x, gate_input, attend, heads, linear, weight, f"{prefix}{i}")
    # Tokens that went in alike came out alike, but a matrix product may round its last rows otherwise, and merging
    # (merging.py) compares bits.
    x = x[:, first_equal_rows(torch.cat([embeds[0], real[0].to(embeds)], dim=1))]
    return Conditioning(context=x, pooled=pooled)


def _check_connector(weights: Mapping[str, Tensor], blocks: Sequence[str], heads: int | None) -> tuple[int, int]:
    """Width of the prompt's embeddings and number of heads. Raises ValueError unless the connector is whole and in shape.

    The shapes come from the header: no tensor is read.
    """
    shapes = {name: tuple(meta(weights, name).shape) for name in weights if name.startswith(CONNECTOR_PREFIX)}
    first, last = (CONNECTOR_PREFIX + name for name in ("S.input_embedder.weight", "global_proj_out.weight"))
    for name in (first, last):
        if len(shapes.get(name, ())) != 2:
            raise ValueError(f"transformer: the tensor '{name}' is {shapes.get(name, 'missing')}; a released Step1X-Edit file (with "
                             "its connector) or a packed FE2E checkpoint is needed")
    (c, prompt), pooled = shapes[first], shapes[last][0]
    linear = {"S.input_embedder": (c, prompt), "S.t_embedder.mlp.0": (c, 256), "S.t_embedder.mlp.2": (c, c),
              "S.c_embedder.linear_1": (c, prompt), "S.c_embedder.linear_2": (c, c), "global_proj_out": (pooled, prompt)}
    for block in blocks:
        linear |= {f"{block}.self_attn_qkv": (3 * c, c), f"{block}.self_attn_proj": (c, c), f"{block}.mlp.fc1": (4 * c, c),
                   f"{block}.mlp.fc2": (c, 4 * c), f"{block}.adaLN_modulation.1": (2 * c, c),
                   f"{block}.norm1": (c,), f"{block}.norm2": (c,)}
    expected = {f"{name}.weight": shape for name, shape in linear.items()} | {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    if CONNECTOR_PREFIX + "scale_factor" in shapes:
        expected["scale_factor"] = (1,)
    for name, shape in expected.items():
        found = shapes.get(CONNECTOR_PREFIX + name)
        if found != shape:
            raise ValueError(f"transformer: the tensor '{CONNECTOR_PREFIX}{name}' is {found or 'missing'}; expected {shape}. The file is "
                             "incomplete or damaged, download it again")
    heads = max(1, c // HEAD_WIDTH) if heads is None else heads
    if not 1 <= heads <= c or c % heads:
        raise ValueError(f"transformer: its connector has {heads} heads by the file's metadata; expected a divisor of its width {c}. Make "
                         "the file again")
    return prompt, heads


def _refiner_block(x: Tensor, gate_input: Tensor, attend: Tensor, heads: int, linear, weight, name: str) -> Tensor:
    """One pre-norm transformer block of the token refiner, its two residuals gated by time and prompt."""

    def norm(x: Tensor, which: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight(f"{name}.{which}.weight"), weight(f"{name}.{which}.bias"), 1e-6)

    gate_attention, gate_mlp = linear(F.silu(gate_input), f"{name}.adaLN_modulation.1")[:, None].chunk(2, dim=-1)
    b, t, c = x.shape
    q, k, v = linear(norm(x, "norm1"), f"{name}.self_attn_qkv").reshape(b, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    attention = F.scaled_dot_product_attention(q, k, v, attn_mask=attend).transpose(1, 2).reshape(b, t, c)
    x = x + gate_attention * linear(attention, f"{name}.self_attn_proj")
    return x + gate_mlp * linear(F.silu(linear(norm(x, "norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
