"""`python -m tools.soak`: every check, hours long; `--checks` picks some, `--write` keeps the results in the document.

Only Linux: memory, disks and networks are asked of its kernel. Exit status 1 when a check found something.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tools.comfyui import ROOT
from tools.fuzz.campaign import run as fuzz
from tools.server import ComfyServer
from tools.soak import endurance, interruptions, plans, report, restarts, sharing, surroundings
from tools.soak.prompts import Prompts, digest, write_picture
from tools.soak.result import Result


@contextmanager
def _server(environment: Mapping[str, str] | None = None) -> Iterator[ComfyServer]:
    with tempfile.TemporaryDirectory(prefix="fe2e-soak-") as folder, ComfyServer(Path(folder), environment=environment) as server:
        write_picture(server.input)
        yield server


def _with_server(check: Callable[[ComfyServer, argparse.Namespace], Result]) -> Callable[[argparse.Namespace], Result]:
    def run(arguments: argparse.Namespace) -> Result:
        with _server() as server:
            return check(server, arguments)

    return run


def _endurance(arguments: argparse.Namespace) -> Result:
    with _server(plans.STEADY) as server:
        result, memory = endurance.endure(server, arguments.prompts, arguments.seed, arguments.prompts // 10, 60 * arguments.minutes)
    report.draw_memory(memory, arguments.prompts // 10, arguments.out / "memory.png")
    return result


def _control(arguments: argparse.Namespace) -> Result:
    with _server(plans.STEADY) as server:
        return endurance.control(server, arguments.prompts, arguments.seed, arguments.prompts // 10)


def _odd_paths(arguments: argparse.Namespace) -> Result:
    with _server() as server:
        expected = digest(server.run(Prompts(server).reference(), 900))
    with tempfile.TemporaryDirectory(prefix="fe2e-soak-") as folder, surroundings.odd_server(Path(folder)) as server:
        return surroundings.names(server, expected)


def _offline(arguments: argparse.Namespace) -> Result:
    with _server() as server:
        expected = digest(server.run(Prompts(server).reference(), 900))
    with tempfile.TemporaryDirectory(prefix="fe2e-soak-") as folder:
        return surroundings.offline(Path(folder), expected)


def _fuzz(arguments: argparse.Namespace) -> Result:
    outcome = fuzz(arguments.seed, arguments.seconds, 10**9)
    result = Result("fuzzer", f"{outcome.inputs} damaged files for {len(outcome.table())} readers (seed {outcome.seed})")
    result.failures = [f"input {f.number} ({f.target}, {f.file}): {f.verdict}: {f.text}" for f, _ in outcome.distinct()]
    deaths = "the reading process never died" if outcome.workers == 1 else f"the reading process died {outcome.workers - 1} times"
    accepted, refused = (sum(row[column] for row in outcome.table()) for column in (2, 3))
    result.found = f"{refused} refused by name, {accepted} read as valid, {len(outcome.failures)} failures; {deaths}"
    return result


def _properties(arguments: argparse.Namespace) -> Result:
    """The property-based tests with many more examples, and others each time."""
    files = ["tests/core/test_reader_properties.py", "tests/nodes/test_input_properties.py"]
    result = Result("properties")
    for file in files:
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", file], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "HYPOTHESIS_PROFILE": "long"})  # fmt: skip
        result.require(done.returncode == 0, f"{file}: {done.stdout[-1500:]}")
        result.found += f"{file}: {done.stdout.strip().splitlines()[-1]}. "
    result.done = "property-based tests of every file reader and every node input, `HYPOTHESIS_PROFILE=long`"
    return result


CHECKS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "fuzz": _fuzz,
    "properties": _properties,
    "shared": _with_server(lambda server, _: sharing.share(server)),
    "names": _odd_paths,
    "offline": _offline,
    "disks": _with_server(lambda server, _: surroundings.disks(server)),
    "kills": _with_server(lambda server, arguments: restarts.kill(
        server, arguments.kills, arguments.seed, seconds=60 * arguments.minutes)),
    "interruptions": _with_server(lambda server, arguments: interruptions.interrupt(
        server, arguments.interruptions, arguments.seed, seconds=60 * arguments.minutes)),
    "endurance": _endurance,
    "control": _control,
    "plans": lambda _: plans.measure(),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--checks", nargs="*", default=list(CHECKS), choices=list(CHECKS), metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of fuzzing (default: %(default)s)")
    parser.add_argument("--interruptions", type=int, default=100)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which a count is cut short, and said to be")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "soak", help="folder for what is drawn (default: out/soak)")
    parser.add_argument("--write", action="store_true", help="keep the results in docs/reliability.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in arguments.checks:
        began = time.monotonic()
        result = CHECKS[name](arguments)
        result.seconds = time.monotonic() - began
        print(f"{name}: {'FAILED' if result.failures else 'ok'} ({result.seconds:.0f} s): {result.done}; {result.found}", flush=True)
        for failure in result.failures:
            print(f"  {failure}", flush=True)
        if result.failures:
            failed.append(name)
        if arguments.write:
            report.keep(name, result)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
