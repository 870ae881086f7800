"""A fuzzing campaign: runs the worker, watches it, and goes on with the next input when one has killed it."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.comfyui import ROOT

FINE = ("accepted", "refused")


@dataclass(frozen=True)
class Failure:
    """One input that was not read as promised. number: -1 for a whole file or a deliberate liar."""

    number: int
    target: str
    file: str
    verdict: str
    text: str


@dataclass
class Outcome:
    """counts: (target, verdict) -> inputs. inputs: how many were read. workers: how many processes it took."""

    seed: int
    inputs: int = 0
    workers: int = 0
    seconds: float = 0.0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def note(self, line: dict[str, Any]) -> None:
        """One verdict of the worker's."""
        self.inputs += 1
        self.counts[line["target"], line["verdict"]] += 1
        if line["verdict"] not in FINE:
            self.failures.append(
                Failure(line.get("number", -1), line["target"], line["file"], line["verdict"], line["text"])
            )

    def distinct(self) -> list[tuple[Failure, int]]:
        """One failure of each kind (reader, verdict, exception and the place it came from), and how many there were."""
        kinds: dict[tuple[str, ...], list[Failure]] = {}
        for failure in self.failures:
            place = failure.text.rpartition("[")[2]
            kinds.setdefault((failure.target, failure.verdict, failure.text.partition(":")[0], place), []).append(failure)
        return [(found[0], len(found)) for found in kinds.values()]

    def table(self) -> list[tuple[str, int, int, int, int]]:
        """(target, inputs, accepted, refused, failures), one row a target."""
        names = dict.fromkeys(target for target, _ in self.counts)
        rows = []
        for name in names:
            found = {verdict: n for (target, verdict), n in self.counts.items() if target == name}
            good = [found.get(verdict, 0) for verdict in FINE]
            rows.append((name, sum(found.values()), *good, sum(found.values()) - sum(good)))
        return rows


def run(seed: int, seconds: float, inputs: int, targets: Sequence[str] = (), patience: float = 60.0,
        module: str = "tools.fuzz.worker") -> Outcome:  # fmt: skip
    """Fuzz until `seconds` are over or `inputs` were read. patience: seconds after which one input hangs.

    module: of the worker. Raises RuntimeError when a worker does not even start.
    """
    outcome, began, first = Outcome(seed), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="fe2e-fuzz-") as scratch:
        while first < inputs and (left := seconds - (time.monotonic() - began)) > 0:
            outcome.workers += 1
            first = _one_worker(outcome, first, inputs, left, list(targets), patience, Path(scratch), module)
    outcome.seconds = time.monotonic() - began
    return outcome


def _one_worker(outcome: Outcome, first: int, inputs: int, seconds: float, targets: list[str], patience: float,
                folder: Path, module: str) -> int:  # fmt: skip
    """Runs one worker to its end; returns the number of the first input that is left."""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", module, "--folder", str(folder), "--pipe", str(write_end), "--seed",
               str(outcome.seed), "--first", str(first), "--inputs", str(inputs), "--seconds", str(seconds), "--targets",
               *targets]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[write_end], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=said)  # fmt: skip
        os.close(write_end)
        current: dict[str, Any] | None = None
        ready = hung = False
        try:
            for line in _lines(read_end, patience):
                if line is None:
                    hung = True
                    break
                ready = True
                if line["kind"] == "begin":
                    current = line
                elif line["kind"] in ("end", "whole"):
                    outcome.note(line)
                    current, first = None, max(first, line.get("number", first - 1) + 1)
                elif line["kind"] == "done":
                    return inputs
        finally:
            os.close(read_end)
            worker.kill()
            code = worker.wait()
        said.seek(0)
        tail = said.read()[-2000:].decode("utf-8", "replace")
        if not ready or current is None:
            raise RuntimeError(f"the fuzzing process ended with {code} outside of any input:\n{tail}")
        verdict = "hang" if hung else "crash"
        outcome.note({**current, "verdict": verdict, "text": f"{patience:.0f} s" if hung else f"ended with {code}: {tail[-500:]}"})
        return current["number"] + 1


def _lines(pipe: int, patience: float) -> Iterator[dict[str, Any] | None]:
    """Decoded lines of a pipe; None, once, when nothing came for `patience` seconds, or ten minutes at first."""
    pending, wait = b"", 600.0
    while True:
        readable, _, _ = select.select([pipe], [], [], wait)
        if not readable:
            yield None
            return
        piece = os.read(pipe, 65_536)
        if not piece:
            return
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            wait = patience
            yield json.loads(line)


def keep(outcome: Outcome, folder: Path) -> None:
    """Write the inputs that failed, and what they did, to `folder`."""
    from tools.fuzz.targets import targets
    from tools.fuzz.worker import Fuzzer

    folder.mkdir(parents=True, exist_ok=True)
    known = targets()
    used = [known[name] for name in dict.fromkeys(target for target, _ in outcome.counts)]
    with tempfile.TemporaryDirectory() as scratch:
        fuzzer = Fuzzer(Path(scratch), used)
        for failure in outcome.failures:
            if failure.number >= 0:
                _, name, data = fuzzer.damaged(outcome.seed, failure.number)
                (folder / f"{outcome.seed}-{failure.number}-{Path(name).name}").write_bytes(data)
    (folder / "failures.json").write_text(json.dumps([vars(f) for f in outcome.failures], indent=1))


def new_seed() -> int:
    """A seed nobody has used, printed so that the run can be repeated."""
    return random.SystemRandom().randrange(10**9)
