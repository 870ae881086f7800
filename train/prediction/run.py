"""Predicting many pictures: read ahead, one after the other through the network, written behind."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from train.prediction.inputs import Work
from train.prediction.outputs import Store
from train.prediction.schedule import (
    Ahead,
    Bad,
    Event,
    Finished,
    ReadOptions,
    Ready,
    ShardRead,
    Share,
    read_share,
    share_of,
)
from train.predictor import GeometryPredictor, PredictionFailed, SizeChoice

log = logging.getLogger(__name__)

SETTINGS = "predict.json"
_AHEAD = 2
_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 30.0


@dataclass
class Counts:
    """Pictures (frames, samples; a shard that is finished counts once)."""

    predicted: int = 0
    finished: int = 0
    bad: int = 0


def read_settings(folder: Path) -> dict:
    """How what lies in an output folder was made; empty for a folder without results. Raises ValueError."""
    path = folder / SETTINGS
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; choose another output folder") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: found no table of settings; choose another output folder")
    return settings


def claim(folder: Path, settings: dict) -> None:
    """Make sure that what lies in the output folder was made in the way it would be made now, and note that way.

    Raises ValueError when it was not, or when the folder holds other things.
    """
    path = folder / SETTINGS
    earlier = read_settings(folder)
    if earlier and earlier != settings:
        changed = sorted(k for k in {*earlier, *settings} if earlier.get(k) != settings.get(k))
        raise ValueError(
            f"{folder}: its results were made with another {', '.join(changed)} ({path}); choose another output "
            "folder, or the same settings to go on"
        )
    if earlier:
        return
    if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise ValueError(f"{folder}: it is not empty and not of an earlier run; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{SETTINGS}"
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


class Monitor:
    """How far this process is: one line that is rewritten, or a line now and then in a log."""

    def __init__(self, total: int, share: Share):
        self._total = max(1, total)
        self._who = f" (process {share.rank + 1} of {share.ranks})" if share.ranks > 1 else ""
        self._terminal = sys.stdout.isatty()
        self._next = time.monotonic() + (0 if self._terminal else _LOG_SECONDS)
        self._start: tuple[float, int] | None = None

    def show(self, counts: Counts, done: int, last: bool = False) -> None:
        """done: bytes read."""
        now = time.monotonic()
        if self._start is None and counts.predicted:
            self._start = (now, done)
        if now < self._next and not (last and self._terminal):
            return
        self._next = now + (_TERMINAL_SECONDS if self._terminal else _LOG_SECONDS)
        text = f"{counts.predicted} predicted, {100 * done / self._total:.1f} %"
        if counts.bad:
            text += f", {counts.bad} bad"
        if self._start is not None and counts.predicted > 1:
            seconds = max(now - self._start[0], 1e-3)
            text += f", {(counts.predicted - 1) / seconds:.2f} pictures/s"
            rate = (done - self._start[1]) / seconds
            if rate > 0 and not last:
                text += f", {_duration((self._total - done) / rate)} left"
        text += self._who
        print(f"\r{text:<90}" if self._terminal else text, end="" if self._terminal and not last else "\n", flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Predicting:
    """One process's share of the work.

    writers: threads that compress and write. Whatever is wrong with one input is noted and the next one taken; what
    is wrong with the output folder is raised as OSError.
    """

    def __init__(self, predictor: GeometryPredictor, store: Store, size: SizeChoice, reading: ReadOptions,
                 share: Share, writers: int = 2, show: bool = True):
        self._predictor, self._store, self._size = predictor, store, size
        self._reading, self._share, self._writers, self._show = reading, share, max(1, writers), show
        self.counts = Counts()

    def run(self, work: Iterable[Work]) -> Counts:
        """Do this process's part of `work`. Stopped by an exception, another run goes on after the last file."""
        mine = share_of(work, self._share)
        monitor = Monitor(sum(item.bytes for item in mine), self._share)
        events = read_share(mine, self._share, self._store, self._reading)
        pending: deque[Future] = deque()
        pool = ThreadPoolExecutor(self._writers, thread_name_prefix="write")
        done = 0
        try:
            with Ahead(events, _AHEAD) as coming:
                for event in coming:
                    self._take(event, pool, pending)
                    while len(pending) > 2 * self._writers:
                        pending.popleft().result()
                    done = event.done
                    if self._show:
                        monitor.show(self.counts, done)
            _wait(pending)
        finally:
            # files at work are finished, those that wait are left to the next run
            pool.shutdown(wait=True, cancel_futures=True)
        if self._show:
            monitor.show(self.counts, done, last=True)
        return self.counts

    def _take(self, event: Event, pool: ThreadPoolExecutor, pending: deque[Future]) -> None:
        if isinstance(event, Finished):
            self.counts.finished += 1
        elif isinstance(event, Bad):
            self._refuse(event, event.reason)
        elif isinstance(event, Ready):
            try:
                geometry = self._predictor(event.image, self._size)
            except (PredictionFailed, ValueError) as error:
                self._refuse(event, str(error))
                return
            pending.append(pool.submit(self._save, event, geometry))
            self.counts.predicted += 1
        elif isinstance(event, ShardRead):
            _wait(pending)
            self._store.pack(event.name, event.keys)

    def _save(self, event: Ready, geometry: dict) -> None:
        self._store.save(event.stem, geometry)
        self._store.forget(event.name)

    def _refuse(self, event: Event, reason: str) -> None:
        self.counts.bad += 1
        source, reason = (" ".join(text.split()) for text in (event.source, reason))
        log.warning("%s: %s", source, reason)
        self._store.note(event.name, f"{source}\t{reason}\n")


def _wait(pending: deque[Future]) -> None:
    while pending:
        pending.popleft().result()
