"""How far a long job of the command line is: one line that is rewritten, or a line now and then in a log."""

from __future__ import annotations

import sys
import time

_TERMINAL_SECONDS, _LOG_SECONDS = 0.2, 10.0


class Progress:
    """Callable as `on_step(done, total)` in bytes. label: what is being done."""

    def __init__(self, label: str):
        self._label = label
        self._began = time.monotonic()
        self._next = 0.0
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        terminal = sys.stdout.isatty()
        if now < self._next and done < total:
            return
        self._next = now + (_TERMINAL_SECONDS if terminal else _LOG_SECONDS)
        rate = (done - self._first) / max(now - self._began, 1e-3)
        left = f", {(total - done) / rate / 60:.0f} min left" if rate > 0 and total - done > 30 * rate else ""
        text = (f"{self._label}: {done / 2**30:.2f} of {total / 2**30:.2f} GiB ({100 * done // max(total, 1)} %), "
                f"{rate / 2**20:.0f} MiB/s{left}")
        print(f"\r{text:<100}" if terminal else text, end="" if terminal and done < total else "\n", flush=True)
