"""Stage clocks, interleaved repetitions, and peak memory."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Clock:
    """Seconds of one run by stage, on the wall and of this process's processors (which other processes on a busy
    machine stretch less); on a GPU every stage ends with a synchronisation.
    """

    synchronize: Callable[[], None] = lambda: None
    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start, processor = time.perf_counter(), time.process_time()
        yield
        self.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.processor[name] = self.processor.get(name, 0.0) + time.process_time() - processor

    def move(self, seconds: float, processor: float, source: str, target: str) -> None:
        """Count time measured inside one stage under another one."""
        for times, amount in ((self.seconds, seconds), (self.processor, processor)):
            times[source] -= amount
            times[target] = times.get(target, 0.0) + amount

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


#: A contender: runs one picture, telling the clock its stages.
Contender = Callable[[Clock], object]


def interleave(
    contenders: Mapping[str, Contender],
    repetitions: int,
    synchronize: Callable[[], None] = lambda: None,
    on_run: Callable[[str, Clock], None] | None = None,
) -> dict[str, list[Clock]]:
    """Run every contender once per repetition, starting with another one each time, so that a slower
    machine for a while hits all of them alike.
    """
    names = list(contenders)
    clocks: dict[str, list[Clock]] = {name: [] for name in names}
    for repetition in range(repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            clock = Clock(synchronize)
            contenders[name](clock)
            clocks[name].append(clock)
            if on_run is not None:
                on_run(name, clock)
    return clocks


def medians(clocks: list[Clock], processor: bool = False) -> dict[str, float]:
    """Median seconds of each stage, and of the whole run as "whole"; processor: of processor time."""
    runs = [clock.processor if processor else clock.seconds for clock in clocks]
    stages = {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in clocks[0].seconds}
    return stages | {"whole": statistics.median(sum(run.values()) for run in runs)}


def memory_now() -> dict[str, int]:
    """This process's bytes in memory: "all" of it, and "own" without pages of files, which the system may
    drop.

    Empty where there is no /proc.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    found = dict(
        line.split(":", 1)
        for line in status.read_text().splitlines()
        if line.startswith(("VmRSS", "RssAnon"))
    )
    return {
        name: int(found[key].split()[0]) * 1024
        for name, key in (("all", "VmRSS"), ("own", "RssAnon"))
        if key in found
    }


class PeakMemory:
    """Context manager: the largest `memory_now` while it is open, sampled every 10 ms, in `peak`; `before`
    at its start.
    """

    def __init__(self) -> None:
        self.before: dict[str, int] = {}
        self.peak: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _sample(self) -> None:
        for name, value in memory_now().items():
            self.peak[name] = max(self.peak.get(name, 0), value)

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._sample()

    def __enter__(self) -> PeakMemory:
        self.before = memory_now()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._sample()


def module_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's tensors as stored: quantised parameters show another size than they take."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def forget_file(path: str | os.PathLike) -> None:
    """Ask the system to drop a file from its cache, so that the next read is from the disk (on Linux)."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
