"""Hundreds of prompts in one queue: all succeed, and the process does not grow.

Three things grow without a node of this pack, each to an end of its own, and are taken out, so that what is left is a
leak: ComfyUI's history of its last 10,000 prompts (an entry is removed when it has been read), PyTorch's plans of its
last 1,024 shapes of convolution, and the holes in glibc's heap (both by `plans.STEADY`, with which the server starts).
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.server import ComfyServer, PromptError
from tools.soak.prompts import Prompts, digest
from tools.soak.result import Result

#: One-sided 95 % points of Student's t for 1, 2, ... degrees of freedom.
_STUDENT = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81, 1.80, 1.78, 1.77, 1.76, 1.75, 1.75, 1.74, 1.73, 1.73, 1.72)
BLOCKS = 9


@dataclass(frozen=True)
class Slope:
    """Growth per 100 prompts in MB, and its standard error; `upward` when zero lies outside the one-sided 95 % bound."""

    growth: float
    error: float
    degrees: int

    @property
    def upward(self) -> bool:
        return self.growth > _STUDENT[min(self.degrees, len(_STUDENT)) - 1] * self.error


def slope(megabytes: Sequence[float], blocks: int = BLOCKS) -> Slope:
    """Least-squares line through the means of equal blocks: neighbouring prompts are not independent, blocks nearly are.

    Raises ValueError for fewer than two prompts a block.
    """
    length = len(megabytes) // blocks
    if length < 2:
        raise ValueError(f"{len(megabytes)} measurements are too few for {blocks} blocks")
    means = [statistics.fmean(megabytes[i * length : (i + 1) * length]) for i in range(blocks)]
    places = [(i + 0.5) * length / 100 for i in range(blocks)]
    centre, level = statistics.fmean(places), statistics.fmean(means)
    spread = sum((x - centre) ** 2 for x in places)
    growth = sum((x - centre) * (y - level) for x, y in zip(places, means, strict=True)) / spread
    residual = sum((y - level - growth * (x - centre)) ** 2 for x, y in zip(places, means, strict=True))
    return Slope(growth, math.sqrt(residual / (blocks - 2) / spread), blocks - 2)


def resident(process: int) -> float:
    """Memory that a process holds, in MB (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {process} tells no memory")


def endure(server: ComfyServer, count: int, seed: int, settled: int, seconds: float = math.inf) -> tuple[Result, list[float]]:
    """Queues `count` random prompts at once; memory is measured after each. Those before `settled` do not count, and fewer
    than two for each block say nothing about growth. After `seconds` those that are left are taken out of the queue.
    """
    result, chance, prompts = Result("endurance"), random.Random(seed), Prompts(server)
    expected = digest(server.run(prompts.reference(), 900))
    identities = [server.queue(prompts.wearing(chance, f"wear/{number}")) for number in range(count)]
    memory = _memory_after(server, identities, result, seconds)
    result.require(digest(server.run(prompts.reference(), 900)) == expected, "the reference prompt gives another result at the end")
    result.done = f"{count} prompts queued at once, sizes, nodes and outputs at random (seed {seed})"
    if len(memory) < count:
        result.done += f"; stopped after {len(memory)} of them, when {seconds / 60:.0f} min were over"
        count = len(memory)
    if count <= settled:
        result.found = f"{count} prompts: too few to say anything about memory"
        return result, memory
    result.found = f"memory {memory[settled]:.0f} MB after {settled} prompts, {memory[-1]:.0f} MB after {count}"
    if count - settled >= 2 * BLOCKS:
        found = slope(memory[settled:])
        result.require(not found.upward, f"memory grows by {found.growth:.1f} +- {found.error:.1f} MB in 100 prompts")
        result.found += f"; growth in 100 prompts {found.growth:+.2f} MB, standard error {found.error:.2f} MB"
    return result, memory


def _memory_after(server: ComfyServer, identities: Sequence[str], result: Result, seconds: float = math.inf) -> list[float]:
    """Memory in MB after each queued prompt; failed prompts are told to `result`, those left after `seconds` taken out.

    Each entry of the history is removed when it has been read; by its name, for others may have ended since.
    """
    memory: list[float] = []
    began = time.monotonic()
    for number, identity in enumerate(identities):
        if time.monotonic() - began > seconds:
            server.post("/queue", {"clear": True})
            break
        try:
            server.wait(identity, 3600)
        except PromptError as error:
            result.require(False, f"prompt {number}: {error}")
        server.post("/history", {"delete": [identity]})
        memory.append(resident(server.process_id))
        # Only what this prompt wrote: the next one is writing into the same folder.
        for file in (server.output / "wear").glob(f"{number}[!0-9]*"):
            file.unlink()
    return memory


def control(server: ComfyServer, count: int, seed: int, settled: int) -> Result:
    """As many prompts of ComfyUI's own nodes, none of ours: how far it grows by itself. Nothing here can fail but a prompt."""
    result, chance, prompts = Result("control"), random.Random(seed), Prompts(server)
    identities = [server.queue(prompts.foreign(chance, f"wear/{number}")) for number in range(count)]
    memory = _memory_after(server, identities, result)
    found = slope(memory[settled:])
    result.done = f"{count} prompts of core nodes alone (load, scale, blur, save), queued at once, sizes at random (seed {seed})"
    result.found = (
        f"memory {memory[settled]:.0f} MB after {settled} prompts, {memory[-1]:.0f} MB after {count}; growth in 100 prompts "
        f"{found.growth:+.2f} MB, standard error {found.error:.2f} MB: what endurance is to be held against"
    )
    return result
