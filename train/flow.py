"""The flow of one training sample and its loss, for every variant of the paper (Eq. 2, 4, 5, 8); and
sampling.

Time is the editor's: t = 1 is the start z_0, t = 0 the answer z_1, so z_t = t z_0 + (1 - t) z_1 and the
network learns v = z_0 - z_1 (the paper counts t the other way, with the opposite v). From a zero start at t =
1 the left half is *minus* the depth latent: the released sign. The right half, where the picture lies,
becomes plus the normal latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fe2e_core.conditioning import Conditioning
from fe2e_core.packing import Velocity, pack, position_ids, unpack
from train.recipe import Objective


def draw_start(objective: Objective, like: Tensor, seeds: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(z_0, t) of a batch: z_0 the shape of `like` (B,C,h,w), t (B,) in [0,1].

    seeds: one per picture; a picture's noise depends on nothing else, however the batch is divided among
    processes."""
    count = like.shape[0]
    start, time = torch.zeros_like(like), torch.ones(count, device=like.device)
    if objective.start == "noise":
        for i, seed in enumerate(seeds):
            rng = np.random.default_rng(list(seed))
            noise = rng.standard_normal(tuple(like.shape[1:]), dtype=np.float32)
            start[i] = torch.from_numpy(noise).to(like)
            if objective.time == "random":
                time[i] = float(rng.random())
    return start, time


def run_halves(
    velocity: Velocity, left: Tensor, image: Tensor, time: Tensor, conditioning: Conditioning
) -> tuple[Tensor, Tensor]:
    """One pass over [left | image], both (B,C,h,w): the velocities of both halves, same shape."""
    b, _, h, w = image.shape
    tokens = torch.cat([pack(left), pack(image)], dim=1)
    ids = position_ids(h, w, device=image.device)
    ids = torch.cat([ids, ids]).expand(b, -1, -1)
    context = conditioning.context.to(tokens).expand(b, -1, -1)
    context_ids = torch.zeros(b, context.shape[1], 3, device=tokens.device)
    out = velocity(tokens, ids, context, context_ids, time, conditioning.pooled.to(tokens).expand(b, -1))
    first, second = out.chunk(2, dim=1)
    return unpack(first, h, w), unpack(second, h, w)


def flow_loss(
    velocity: Velocity,
    objective: Objective,
    image: Tensor,
    depth: Tensor,
    normal: Tensor,
    depth_mask: Tensor,
    normal_mask: Tensor,
    conditioning: Conditioning,
    seeds: Sequence[Sequence[int]],
    average: Callable[[Tensor], Tensor] = lambda value: value,
) -> tuple[Tensor, Tensor]:
    """(depth loss, normal loss): mean squares over the latents that count; the second is 0 unless joint.

    image, depth, normal (B,C,h,w) latents; masks (B,1,h,w) bool or weights. average: of a number over all
    processes, so that the mean of their losses is the loss of one process with the whole batch, however the
    masks are divided."""
    start, time = draw_start(objective, depth, seeds)
    t = time.view(-1, 1, 1, 1)
    left, right = run_halves(velocity, t * start + (1 - t) * depth, image, time, conditioning)
    depth_loss = _masked_mean((left.float() - (start - depth).float()).square(), depth_mask, average)
    if not objective.joint:
        return depth_loss, depth_loss.new_zeros(())
    return depth_loss, _masked_mean((right.float() - normal.float()).square(), normal_mask, average)


def _masked_mean(squares: Tensor, mask: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over channels and the latents of the mask (B,1,h,w); 0 when none counts."""
    weight = mask.to(squares)
    return (squares * weight).sum() / (average(weight.sum()) * squares.shape[1]).clamp_min(1)


def sample(
    velocity: Velocity,
    objective: Objective,
    image: Tensor,
    conditioning: Conditioning,
    seeds: Sequence[Sequence[int]],
) -> tuple[Tensor, Tensor | None]:
    """(depth latent, normal latent or None) of image latents (B,C,h,w), in `objective.steps` Euler steps (Eq.
    3, 6).
    """
    z, _ = draw_start(objective, image, seeds)
    right = None
    times = torch.linspace(1, 0, objective.steps + 1).tolist()
    for now, then in zip(times[:-1], times[1:], strict=True):
        time = torch.full((len(image),), now, device=image.device)
        left, right = run_halves(velocity, z, image, time, conditioning)
        z = z + (then - now) * left
    return z, right if objective.joint else None
