"""A moving average of the trained tensors: steadier than the last step, and what is validated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- d average + (1 - d) weights after each optimizer step, in float32 beside the weights.

    d is `decay`, but no more than (1 + n) / (10 + n) in step n: a short run is not an average of its start.
    """

    def __init__(self, trained: Sequence[tuple[str, nn.Parameter]], decay: float):
        self._trained = trained
        self._decay = decay
        self.tensors = {name: parameter.detach().float().clone() for name, parameter in trained}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` = 1, 2, ..."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._trained:
            self.tensors[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters are the averages; afterwards they are what they were, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._trained:
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the averages of a checkpoint."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
