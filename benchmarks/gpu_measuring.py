"""Measuring one variant on a card, and keeping what was measured as JSON."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
from torch import Tensor

from benchmarks import models
from benchmarks.contenders import Variant, build, chosen_attention, watch_text_tokens
from benchmarks.sizes import ModelSize
from benchmarks.timing import Clock, interleave, medians

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """One variant: median seconds by stage ("whole" for all), peak bytes on the card, text tokens in the
    transformer.

    peaks: bytes by stage, of one more run. small_card: bytes of the "card" that was left, the "peak" and the
    "seconds" there; without those two it ran out of memory. build_seconds, warm_up_seconds: what a run of the benchmark
    is made of, compilation included.
    """

    variant: Variant
    seconds: dict[str, float]
    peak: int
    text_tokens: int
    peaks: dict[str, int] = field(default_factory=dict)
    small_card: dict[str, float] = field(default_factory=dict)
    build_seconds: float = 0.0
    warm_up_seconds: float = 0.0


@dataclass(frozen=True)
class Record:
    """A run of the benchmark. rate: FLOP/s of the matrix product. day: ISO. where: machine and versions."""

    command: str
    day: str
    where: str
    on_gpu: bool
    size: str
    width: int
    height: int
    repetitions: int
    flags: str
    rate: float
    matmul_side: int
    found: list[Measured]

    def write(self, path: Path) -> None:
        """By one rename, so that a killed run leaves the figures it had."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(asdict(self), indent=1))
        os.replace(part, path)

    @classmethod
    def read(cls, path: Path) -> Record:
        given = json.loads(path.read_text())
        found = [Measured(**m | {"variant": Variant(**m["variant"])}) for m in given.pop("found")]
        return cls(found=found, **given)


class PeakClock(Clock):
    """A clock that also sees how much memory each stage holds at its peak. It changes nothing else."""

    def __init__(self, synchronize: Callable[[], None]):
        super().__init__(synchronize)
        self.peaks: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats()
        with super().stage(name):
            yield
        self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(side: int, repetitions: int = 20) -> float:
    """Best measured FLOP/s of a square bfloat16 matrix product on this machine: what the share is a share
    of.
    """
    where = device()
    a, b = (torch.randn(side, side, device=where).to(torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(repetitions):
        synchronize()
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        synchronize()
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * side**3 / best


@torch.inference_mode()  # as ComfyUI runs its nodes, loaders too
def measure(
    variant: Variant, size: ModelSize, height: int, width: int, repetitions: int, small_card_gib: float | None
) -> Measured:
    """Build, warm up twice (kernels, compilation), measure, drop."""
    start = time.perf_counter()
    contender = build(variant, size, torch.bfloat16, str(device()))
    synchronize()
    built = time.perf_counter()
    image = models.picture(height, width)
    cuda = torch.cuda.is_available()
    with chosen_attention(variant):
        # Not compiled: with its hook, which goes away again, a compiled model would be compiled twice.
        with watch_text_tokens(contender) as seen, torch.compiler.set_stance("force_eager"):
            contender.latents(image, Clock(synchronize))
        for _ in range(2):
            contender(image, Clock(synchronize))
        warm = time.perf_counter()
        logger.info("%s: built in %.1f s, warm after %.1f s", variant.title, built - start, warm - built)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        runs = {variant.title: partial(contender, image)}
        clocks = interleave(runs, repetitions, synchronize)[variant.title]
        peak, peaks, small = 0, {}, {}
        if cuda:
            peak = torch.cuda.max_memory_allocated()
            clock = PeakClock(synchronize)
            contender(image, clock)
            peaks = clock.peaks
            if small_card_gib is not None:
                small = on_a_small_card(contender, image, int(small_card_gib * 2**30))
    result = Measured(
        variant, medians(clocks), peak, seen[0], peaks, small, built - start, warm - built
    )
    logger.info("%s", result)
    del contender, runs
    drop_models()
    return result


def on_a_small_card(contender: Callable[[Tensor, Clock], object], image: Tensor, card: int) -> dict[str, float]:
    """Two runs while another allocation leaves only `card` bytes of the device; peak and seconds of the second.

    ComfyUI then decides as on such a card what to keep there.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    taken = total - card
    if not 0 < taken < free:
        return {}
    filler = torch.empty(taken, dtype=torch.uint8, device="cuda")
    try:
        contender(image, Clock(synchronize))
        torch.cuda.reset_peak_memory_stats()
        clock = Clock(synchronize)
        contender(image, clock)
        peak = torch.cuda.max_memory_allocated() - filler.nbytes
        return {"card": card, "peak": peak, "seconds": clock.total}
    except torch.OutOfMemoryError:
        logger.exception("does not fit %d bytes", card)
        return {"card": card}
    except Exception:  # what was measured before is worth having all the same
        logger.exception("fails with %d bytes", card)
        return {}
    finally:
        del filler
        torch.cuda.empty_cache()


def drop_models() -> None:
    """Everything off the card, so that the next variant starts with an empty one. Forgotten, not moved to the main
    memory first: that would take longer than measuring.
    """
    import comfy.model_management

    torch._dynamo.reset()
    gc.collect()
    comfy.model_management.cleanup_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()
    if torch.cuda.is_available() and torch.cuda.memory_allocated() > 2**30:
        logger.warning("%.1f GiB are still on the card", torch.cuda.memory_allocated() / 2**30)
