"""A server must not outlive the run that started it, even when that run is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import subprocess, sys, threading
from tools.guard import Guard
started = []
def start():
    started.append(subprocess.Popen(["sleep", "60"], start_new_session=True))
    started.append(Guard(started[0].pid))
thread = threading.Thread(target=start)  # the thread that starts it may end long before its owner
thread.start(); thread.join()
print(started[0].pid, flush=True)
{then}
"""


def owner(then: str) -> tuple[subprocess.Popen, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then)], stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    return process, int(process.stdout.readline())


def ends(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            # an orphan may stay as a zombie where nobody reaps it
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_killed_owner_takes_its_process_along() -> None:
    process, pid = owner("import time; time.sleep(600)")
    assert not ends(pid, 0.3), "alive as long as its owner, though the thread that started it is gone"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ends(pid, 20)


def test_a_released_process_lives_on() -> None:
    process, pid = owner("started[1].release(); started[1].release()")
    assert process.wait() == 0
    try:
        assert not ends(pid, 0.5)
    finally:
        os.kill(pid, signal.SIGKILL)
