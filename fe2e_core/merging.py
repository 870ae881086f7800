"""Identical context tokens as one token: fewer tokens, the same result.

Every text token of this transformer has the same position id, so two tokens with the same content stay the
same through every block, and as keys they count twice. n of them are therefore one key whose attention logit
is raised by ln n: exp(s + ln n) = n exp(s). In the release most of the 640 tokens are padding of the empty
prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Relative error of a token's weight above which its rounding is made up by a second copy.
WEIGHT_TOLERANCE = 1e-4
#: Least share of all tokens that has to disappear. On a CPU an added mask costs up to 12 % of the attention's
#: time, by ComfyUI's function (benchmarks/merging.py); dropping a share s of the tokens makes attention 2 s
#: faster and everything else s.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class MergedContext:
    """context (1,T',C): the rows that differ; log_counts (T',) float32: what to add to their logits.

    before: the number of tokens that became T'.
    """

    context: Tensor
    log_counts: Tensor
    before: int

    def saves(self, picture_tokens: int) -> bool:
        """Whether merging pays beside this many picture tokens; by counts alone, so it never flips."""
        after = self.context.shape[1]
        return self.before - after >= LEAST_SHARE * (self.before + picture_tokens)

    def mask(self, picture_tokens: int, dtype: torch.dtype) -> Tensor:
        """(1,1,1,T'+N) to add to attention logits; text tokens come first, picture tokens get 0."""
        count = self.log_counts.numel()
        mask = torch.zeros(1, 1, 1, count + picture_tokens, dtype=dtype, device=self.context.device)
        mask[..., :count] = self.log_counts
        return mask


def merge_tokens(context: Tensor) -> MergedContext:
    """Merge the rows of a context (1,T,C) that are equal bit for bit, in the order of their first appearance.

    Half-precision contexts get half-precision weights: where rounding ln n would change a token's weight by
    more than WEIGHT_TOLERANCE, a second copy of the token carries the rest. Raises ValueError for another
    shape.
    """
    if context.ndim != 3 or context.shape[0] != 1:
        raise ValueError(f"context: found {tuple(context.shape)}, expected (1, tokens, width): "
                         "one constant context for all pictures")
    counts: dict[int, int] = {}
    for index in first_equal_rows(context[0]):
        counts[index] = counts.get(index, 0) + 1
    kept: list[int] = []
    logs: list[float] = []
    for index, count in counts.items():
        for value in _weights(count, context.dtype):
            kept.append(index)
            logs.append(value)
    merged = context[:, torch.tensor(kept, device=context.device)]
    log_counts = torch.tensor(logs, dtype=torch.float32, device=context.device)
    return MergedContext(merged, log_counts, context.shape[1])


def first_equal_rows(rows: Tensor) -> list[int]:
    """For each row of (T,C) the index of the first row with the same bits; -0.0 counts as 0.0."""
    first: dict[bytes, int] = {}
    # Adding zero gives both zeros the same bits.
    comparable = (rows.detach() + 0).contiguous().cpu().view(torch.uint8).numpy()
    return [first.setdefault(row.tobytes(), i) for i, row in enumerate(comparable)]


def _weights(count: int, dtype: torch.dtype) -> list[float]:
    """Logarithms, each representable in dtype, whose exponentials add up to count."""
    nearest = float(torch.tensor(math.log(count)).to(dtype))
    if abs(math.exp(nearest) / count - 1) <= WEIGHT_TOLERANCE:
        return [nearest]
    # One unit below the logarithm, rounded, is never above it: the remainder stays positive.
    below = float(torch.tensor(math.log(count) * (1 - torch.finfo(dtype).eps)).to(dtype))
    rest = count - math.exp(below)
    return [below, float(torch.tensor(math.log(rest)).to(dtype))]
