"""FLUX attention for training on a CPU: plain matrix products in bfloat16.

The same numbers as diffusers' processor up to rounding. It is quicker for a few hundred tokens because rotary
embedding and softmax stay in few, large operations, and because CPU flash attention is slow in the backward pass.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn


def _rms(x: Tensor, norm: nn.Module) -> Tensor:
    """RMS normalisation over the last axis, statistics in float32."""
    power = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    factor = (power.square() / x.shape[-1] + norm.eps).rsqrt()
    return x * factor.to(x.dtype) * norm.weight.to(x.dtype)


class FastFluxAttention:
    """Attention processor for `FluxAttention` (diffusers): q, k, v of text and picture joined, one softmax."""

    def __init__(self) -> None:
        self._turn: Tensor | None = None

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding of (B,N,heads,D): neighbouring pairs (a, b) become (a cos - b sin, b cos + a sin)."""
        if self._turn is None or self._turn.dtype != x.dtype:
            turn = torch.zeros(x.shape[-1], x.shape[-1], dtype=x.dtype)
            even = torch.arange(0, x.shape[-1], 2)
            turn[even + 1, even], turn[even, even + 1] = -1, 1
            self._turn = turn
        return x * cos + (x @ self._turn) * sin

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, attn.head_dim))

        query, key = _rms(heads(attn.to_q(hidden_states)), attn.norm_q), _rms(heads(attn.to_k(hidden_states)), attn.norm_k)
        value = heads(attn.to_v(hidden_states))
        text = 0
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            text_query = _rms(heads(attn.add_q_proj(encoder_hidden_states)), attn.norm_added_q)
            text_key = _rms(heads(attn.add_k_proj(encoder_hidden_states)), attn.norm_added_k)
            query, key = torch.cat([text_query, query], dim=1), torch.cat([text_key, key], dim=1)
            value = torch.cat([heads(attn.add_v_proj(encoder_hidden_states)), value], dim=1)
        if image_rotary_emb is not None:
            cos, sin = (part.to(query.dtype)[None, :, None] for part in image_rotary_emb)
            query, key = self._rotate(query, cos, sin), self._rotate(key, cos, sin)
        query, key, value = (x.transpose(1, 2) for x in (query * attn.head_dim**-0.5, key, value))
        weights = torch.softmax((query @ key.transpose(2, 3)).float(), dim=-1)
        result = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return result
        return attn.to_out[0](result[:, text:]), attn.to_add_out(result[:, :text])


def use_fast_attention(transformer: FluxTransformer2DModel) -> None:
    """Put the training attention in place; diffusers' `set_attn_processor` puts another one back."""
    transformer.set_attn_processor(FastFluxAttention())
