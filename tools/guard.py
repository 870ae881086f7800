"""A process that does not outlive its owner, even when the owner is killed and can clean up nothing.

A watcher, as small as Python gets, waits at a pipe that only the owner holds open. The kernel closes the pipe when the
owner ends, however it ends, and the watcher then kills the process group. `PR_SET_PDEATHSIG` would do without a
watcher, but it fires when the *thread* that started the process ends, and only on Linux.
"""

from __future__ import annotations

import subprocess
import sys

#: Told anything, the watcher leaves; told nothing until the pipe closes, it kills.
_WATCHER = """
import os, signal, sys
if not os.read(0, 1):
    try:
        os.killpg(int(sys.argv[1]), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Guard:
    """Kills the process group `group` when this process ends before `release` was called."""

    def __init__(self, group: int) -> None:
        # a session of its own: what kills the owner's group must not kill the watcher with it
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(group)], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def release(self) -> None:
        """Lets the group live, or stay dead: its number may belong to others by now. Idempotent."""
        if self._watcher.stdin is not None and not self._watcher.stdin.closed:
            try:
                self._watcher.stdin.write(b".")
                self._watcher.stdin.close()
            except BrokenPipeError:
                pass  # somebody ended the watcher
            self._watcher.wait()
