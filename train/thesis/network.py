"""The twins: FLUX-shaped transformers that know the time and an instruction, alike but for what they are trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fe2e_core.conditioning import Conditioning
from fe2e_core.folding import Constant
from fe2e_core.packing import pack, position_ids, unpack
from train.backend import build_transformer, velocity_of
from train.config import TransformerShape
from train.fast_attention import use_fast_attention
from train.flow import draw_start
from train.recipe import Objective
from train.thesis.edits import FEATURES, blank

BASES = EDITOR, GENERATOR, SCRATCH = "editor", "generator", "none"

NOISE = Objective(start="noise", time="random", joint=False)
"""Ordinary flow matching, which both are pretrained with (Eq. 2)."""


class Twin(nn.Module):
    """The transformer, and the layer that turns an instruction (B,FEATURES) into context tokens.

    Unlike the small model of this pack its modulation is not folded: the bases have to know the time. It starts at
    the same point: gates at one, shifts and scales at zero, whatever the time."""

    def __init__(self, shape: TransformerShape, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer = build_transformer(shape)
            _unfold(self.transformer, shape.width)
            self.instruct = nn.Linear(FEATURES, shape.context_tokens * shape.context_width)
        self.transformer.time_text_embed.requires_grad_(True)
        self._context = (shape.context_tokens, shape.context_width)
        self.register_buffer("pooled", torch.zeros(1, shape.pooled_width))
        use_fast_attention(self.transformer)

    def context(self, features: Tensor) -> Tensor:
        """Instructions (B,FEATURES) -> (B,T,C)."""
        return self.instruct(features).unflatten(1, self._context)

    def conditioning(self) -> Conditioning:
        """Of the blank instruction, as in fine-tuning: the prompt is left empty."""
        return Conditioning(self.context(blank()[None]), self.pooled)

    def velocity(self, left: Tensor, source: Tensor | None, features: Tensor, time: Tensor) -> Tensor:
        """The velocity of `left` (B,C,h,w) with the source picture's latents beside it, or without; t is (B,)."""
        b, _, h, w = left.shape
        tokens, ids = pack(left), position_ids(h, w)
        if source is not None:
            tokens, ids = torch.cat([tokens, pack(source)], dim=1), torch.cat([ids, ids])
        context = self.context(features)
        out = velocity_of(self.transformer)(
            tokens, ids[None], context, torch.zeros(1, context.shape[1], 3), time, self.pooled.expand(b, -1)
        )
        return unpack(out[:, : (h // 2) * (w // 2)], h, w)


def _unfold(transformer: nn.Module, width: int) -> None:
    """A modulation layer in the place of every constant: zero weight, the constant as bias."""
    names = [name for name, module in transformer.named_modules() if isinstance(module, Constant)]
    for name in names:
        constant = transformer.get_submodule(name).constant
        layer = nn.Linear(width, constant.numel())
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(constant)
        parent, _, leaf = name.rpartition(".")
        setattr(transformer.get_submodule(parent), leaf, layer)


def pretraining_loss(
    twin: Twin, source: Tensor | None, target: Tensor, features: Tensor, seeds: Sequence[Sequence[int]]
) -> Tensor:
    """Eq. 2: mean |v - (z_0 - z_1)|^2 over the target's half. source: latents beside it for the editor, else None."""
    start, time = draw_start(NOISE, target, seeds)
    t = time.view(-1, 1, 1, 1)
    predicted = twin.velocity(t * start + (1 - t) * target, source, features, time)
    return (predicted.float() - (start - target)).square().mean()


def answer(twin: Twin, source: Tensor | None, like: Tensor, features: Tensor, steps: int, seed: int) -> Tensor:
    """A picture (B,C,h,w, latents) by Euler steps from noise: an edit of `source`, or out of nothing."""
    z, _ = draw_start(NOISE, like, [(seed, i) for i in range(len(like))])
    times = torch.linspace(1, 0, steps + 1).tolist()
    for now, then in zip(times[:-1], times[1:], strict=True):
        z = z + (then - now) * twin.velocity(z, source, features, torch.full((len(z),), now)).float()
    return z
