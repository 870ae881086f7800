"""How far a run is, on the command line: a bar with rate and time left, or a plain line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from train.watching import StepReport

_LOG_SECONDS = 10.0
_RATE_SECONDS = 120.0


def pace(seconds: float) -> str:
    """Seconds a step as people say it."""
    return f"{seconds:.2f} s a step" if seconds >= 1 else f"{1 / max(seconds, 1e-9):.1f} steps a second"


def span(seconds: float) -> str:
    """A duration in its two largest units."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{seconds:.0f} s"


class _Pace(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(pace(1 / speed) if speed else "", style="progress.data.speed")


class RunConsole:
    """Shows the steps of a run; use as a context manager and call with each report.

    begin: the steps finished before. console: where to; the standard output unless given."""

    def __init__(self, name: str, begin: int, total: int, console: Console | None = None):
        self._console = console or Console()
        self._name, self._begin, self._total = name, begin, total
        self._start = self._next = 0.0
        self._progress: Progress | None = None
        self._moved: list[tuple[logging.StreamHandler, object]] = []

    def __enter__(self) -> RunConsole:
        self._start = time.monotonic()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Pace(),
                TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[losses]}"),
            )  # fmt: skip
            self._progress = Progress(
                *columns, console=self._console, speed_estimate_period=_RATE_SECONDS
            )
            self._task = self._progress.add_task(
                self._name, total=self._total, completed=self._begin, losses=""
            )
            before = sys.stderr
            self._progress.start()
            # log lines go above the bar, not through it
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                    self._moved.append((handler, handler.setStream(sys.stderr)))
        return self

    def __call__(self, report: StepReport) -> None:
        """One step more."""
        losses = f"depth {report.depth:.4f}, normals {report.normal:.4f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=report.step, losses=losses)
            return
        now = time.monotonic()
        if now < self._next and report.step < self._total:
            return
        self._next = now + _LOG_SECONDS
        seconds = (now - self._start) / max(1, report.step - self._begin)
        left = f", {span(seconds * (self._total - report.step))} left" if report.step < self._total else ""
        self._console.print(
            f"step {report.step}/{self._total}: {losses}, dispersive {report.dispersive:.4f}, gradient "
            f"{report.gradient:.3g}, {pace(seconds)}{left}",
            soft_wrap=True,
            highlight=False,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handler, stream in self._moved:
            handler.setStream(stream)
        if self._progress is not None:
            self._progress.stop()
