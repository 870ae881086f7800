"""How much memory a computation needs, without doing it: tensors on the meta device have sizes and no data.

Every operator runs through here, those of the backward pass as well, and the bytes of each storage count from the
operator that makes it until nothing holds it any more. What kernels need inside themselves is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Allocations(TorchDispatchMode):
    """Counts, while it is entered, the bytes of all storages that operators made and that are still held.

    now: bytes held. peaks: the most that was held in each stage, in the order of their beginnings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peaks: dict[str, int] = {}
        self._stage = ""
        self._sizes: dict[int, int] = {}

    def begin(self, stage: str) -> None:
        """What follows belongs to this stage."""
        self._stage = stage
        self._held()

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now on, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self._held()
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def _held(self) -> None:
        self.peaks[self._stage] = max(self.now, self.peaks.get(self._stage, 0))

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps and makes: no matrix of tokens by tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        # the gradient of the queries is summed up in float32
        accumulator = query.new_empty(query.shape, dtype=torch.float32)
        result = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del accumulator
        return result


class FusedAttention(TorchFunctionMode):
    """Attention without a kernel: on the meta device PyTorch would take the one that no GPU takes."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        return _FusedAttention.apply(given["query"], given["key"], given["value"])


@contextmanager
def counting() -> Iterator[Allocations]:
    """Everything inside is made on the meta device and counted."""
    with torch.device("meta"), Allocations() as allocations, FusedAttention():
        yield allocations
