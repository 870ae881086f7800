"""The dispersive loss: features of different pictures are pushed apart (paper Eq. 9, after arXiv 2506.09027).

    L = log E_ij exp(-|eta_i - eta_j|^2 / (tau D))

eta are the features behind one block, all tokens of one picture flattened to D numbers. The paper prints no
division by D, but at 1024x768 D is 6784 tokens * 3072 = 2.1e7: without it every exponential of two different
pictures underflows, the loss is the constant -ln B and its gradient zero. So distances are per dimension, as
in the public code of the cited work, and the diagonal i = j counts, as there.

One picture alone has nothing to be pushed from: the loss is exactly 0, and accumulating gradients does not
help. It needs a micro-batch of two or more, other ranks ("gather") or remembered features ("queue")."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

log = logging.getLogger(__name__)

SOURCES = ("batch", "gather", "queue")
_FAR_APART = 1e-3
"""How near to its least value, where only the diagonal counts, the loss hardly has a gradient any more."""


@dataclass(frozen=True)
class DispersiveConfig:
    """weight: lambda of the training loss, 0 switches it off. tau: temperature. block: which single block's
    output (the released code taps single_blocks[9], the tenth, text tokens included). source: what a picture
    is pushed from: "batch", the micro-batch; "gather", the micro-batches of all ranks; "queue", also the last
    `queue` pictures of the same size, as they were (no gradient flows into them). Raises ValueError for
    senseless values."""

    weight: float = 0.5
    tau: float = 1.0
    block: int = 9
    source: str = "batch"
    queue: int = 8

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"dispersive source is {self.source!r}; expected one of {', '.join(SOURCES)}")
        if not (self.tau > 0 and self.weight >= 0 and self.block >= 0):
            raise ValueError(
                f"dispersive loss: tau {self.tau}, weight {self.weight}, block {self.block}; expected tau > "
                "0 and "
                "the others at least 0"
            )
        if self.source == "queue" and self.queue < 1:
            raise ValueError(f"dispersive queue is {self.queue}; expected at least 1 remembered picture")


class _MeanSquares(torch.autograd.Function):
    """(B,D), (N,D) -> (B,N) mean over D of the squared differences, float32 at least.

    Pair by pair: autograd would keep a difference of 2e7 numbers for each pair, and the shorter way over
    scalar products loses all digits where two features are nearly equal."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, live: Tensor, others: Tensor) -> Tensor:
        ctx.save_for_backward(live, others)
        wide = torch.promote_types(live.dtype, torch.float32)
        result = torch.zeros(len(live), len(others), dtype=wide, device=live.device)
        among_themselves = _is_same(live, others)
        for i, a in enumerate(live):
            for j in range(i + 1 if among_themselves else 0, len(others)):
                result[i, j] = (a.to(wide) - others[j].to(wide)).square().mean()
        return result + result.T if among_themselves else result

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        live, others = ctx.saved_tensors
        factor = grad * (2 / live.shape[1])
        if _is_same(live, others):
            return _pulled(live, live, factor + factor.T), None
        return (
            _pulled(live, others, factor) if ctx.needs_input_grad[0] else None,
            _pulled(others, live, factor.T) if ctx.needs_input_grad[1] else None,
        )


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


def _pulled(features: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """sum_j factor_ij (features_i - others_j), one pair at a time."""
    result = torch.empty_like(features)
    for i, a in enumerate(features):
        wide = a.to(factor.dtype)
        total = torch.zeros_like(wide)
        for j, b in enumerate(others):
            if b.data_ptr() != a.data_ptr():
                total.addcmul_(wide - b.to(factor.dtype), factor[i, j])
        result[i] = total
    return result


def dispersive_loss(features: Tensor, others: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """Eq. 9 per dimension. features (B,...) with gradient; others (N,...), more pictures to be pushed from.

    The expectation runs over i in `features` and j in `features` and `others`. Returns a scalar: 0 for one
    picture alone, else in (-ln(B + N), 0]; float32, or float64 for float64 features."""
    flat = features.flatten(1)
    distances = _MeanSquares.apply(flat, flat)
    if others is not None and len(others):
        distances = torch.cat([distances, _MeanSquares.apply(flat, others.detach().flatten(1))], dim=1)
    return torch.logsumexp(-distances.flatten() / tau, 0) - math.log(distances.numel())


class FeatureTap:
    """Takes the output of one block during the next forward pass.

    diffusers' single blocks return (text, picture) tokens; they are joined, text first, as FLUX itself keeps
    them. Works under gradient checkpointing (not the re-entrant kind): the pass that recomputes is not
    listened to."""

    def __init__(self, block: nn.Module):
        self._handle = block.register_forward_hook(self._hook)
        self._listening = False
        self._features: Tensor | None = None

    def _hook(self, module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if self._listening:
            self._listening = False
            self._features = output if isinstance(output, Tensor) else torch.cat(list(output), dim=1)

    def __enter__(self) -> FeatureTap:
        self._listening, self._features = True, None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening = False

    def take(self) -> Tensor:
        """The features (B, tokens, width) of the pass made inside `with`. RuntimeError when the block did not
        run.
        """
        if self._features is None:
            raise RuntimeError(
                "dispersive loss: the tapped block did not run in this pass; call the network inside `with "
                "tap`"
            )
        features, self._features = self._features, None
        return features

    def close(self) -> None:
        """Stop listening for good."""
        self._handle.remove()


class Dispersion:
    """The dispersive loss of a training run: knows the other ranks and remembers earlier pictures.

    Call it with the features of each micro-batch; it returns the unweighted loss. In "gather" mode its
    gradient is multiplied by the number of ranks, because the average over ranks divides it: the result is
    the gradient of one process with the whole batch."""

    def __init__(self, config: DispersiveConfig):
        self.config = config
        self._queue: deque[Tensor] = deque(maxlen=config.queue if config.source == "queue" else 0)
        self._warned = self._warned_far = False

    def __call__(self, features: Tensor) -> Tensor:
        if self.config.source == "gather" and dist.is_available() and dist.is_initialized():
            return self._over_ranks(features)
        remembered = [old for old in self._queue if old.shape == features.shape[1:]]
        others = torch.stack(remembered).to(features) if remembered else None
        # an empty queue fills up by itself
        if len(features) < 2 and self.config.source != "queue":
            self._warn()
        loss = dispersive_loss(features, others, self.config.tau)
        self._check_distances(loss, features, others)
        if self.config.source == "queue":
            self._queue.extend(features.detach().clone().unbind(0))
        return loss

    def _over_ranks(self, features: Tensor) -> Tensor:
        """Eq. 9 over the pictures of all ranks; only this rank's own carry a gradient."""
        ranks = dist.get_world_size()
        everyone = [torch.empty_like(features) for _ in range(ranks)]
        dist.all_gather(everyone, features.detach().contiguous())
        everyone[dist.get_rank()] = features
        if ranks * len(features) < 2:
            self._warn()
        together = torch.cat(everyone)
        loss = dispersive_loss(together, tau=self.config.tau)
        self._check_distances(loss, together, None)
        return loss + (ranks - 1) * (loss - loss.detach())

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "the dispersive loss cannot act: there is one picture and nothing to push it from, so it "
                "is 0. Set the "
                "micro-batch to 2 or more, or [dispersive] source = 'queue' (or 'gather' on several "
                "ranks), or weight = 0"
            )

    @torch.no_grad()
    def _check_distances(self, loss: Tensor, features: Tensor, others: Tensor | None) -> None:
        """Warn once when all pictures are so far apart that only the diagonal of Eq. 9 is left: its gradient is then
        that of nothing."""
        count = len(features) + (0 if others is None else len(others))
        if self._warned_far or count < 2 or loss.is_meta or float(loss.detach()) + math.log(count) > _FAR_APART:
            return
        self._warned_far = True
        flat = features.flatten(1)
        distances = _MeanSquares.apply(flat, flat if others is None else others.flatten(1)).flatten()
        log.warning(
            "the dispersive loss hardly acts: at tau = %g pictures are so far apart in block %d (%.3g per "
            "dimension) that its gradient is nearly 0. Set [dispersive] tau to about that distance, or weight = 0",
            self.config.tau,
            self.config.block,
            float(distances[distances > 0].median()),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The remembered features, oldest first; with them a resumed run continues exactly."""
        return {f"{i:04d}": tensor for i, tensor in enumerate(self._queue)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Remember what `state_dict` gave."""
        self._queue.clear()
        self._queue.extend(state[key] for key in sorted(state))


def tap_single_block(transformer: nn.Module, config: DispersiveConfig) -> FeatureTap:
    """A tap on single block `config.block` of a diffusers FLUX transformer (or a wrapper around one).

    Raises ValueError when the transformer has fewer single blocks.
    """
    suffix = f"single_transformer_blocks.{config.block}"
    for name, module in transformer.named_modules():
        if name == suffix or name.endswith("." + suffix):
            return FeatureTap(module)
    count = sum(
        name.rpartition(".")[0].endswith("single_transformer_blocks")
        for name, _ in transformer.named_modules()
    )
    raise ValueError(
        f"[dispersive] block is {config.block}, but this transformer has {count} single blocks; choose one "
        f"of 0 to {count - 1}"
    )
