"""How several processes share one study: each piece of work belongs to whoever has the lock of its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: one process alone
    fcntl = None

CAN_SHARE = fcntl is not None


@contextmanager
def claimed(file: Path, wait: bool = False) -> Iterator[bool]:
    """Whether the lock of `file` is ours for as long as this lasts; with `wait` it is, sooner or later. The system forgets
    the lock of a process that was killed. Where there are no such locks, everything is ours."""
    if fcntl is None:
        yield True
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True
