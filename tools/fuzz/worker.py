"""The process that reads damaged files: small in memory by decree, and expendable.

Started by `python -m tools.fuzz`, which watches it. For every input it writes one line of JSON to the pipe before it
reads ("begin") and one after it ("end"), so that its parent knows what killed it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.fuzz.mutations import mutate
from tools.fuzz.targets import Target, targets

#: Address space that one input may add to what the readers need for whole files. The files are smaller than 2 MB.
ALLOWANCE = 512 * 2**20


def limit_memory(allowance: int = ALLOWANCE) -> None:
    """From here on this process cannot map more than `allowance` bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + allowance
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def judge(target: Target, path: Path) -> tuple[str, str]:
    """Read one damaged file: ("accepted" | "refused" | kind of failure, what was said)."""
    try:
        target.read(path)
    except Exception as error:
        if ran_out(error):
            return "memory", _where(error)
        if isinstance(error, AssertionError):
            return "broken promise", _where(error)
        if not isinstance(error, target.refusals):
            return "undocumented exception", _where(error)
        text = str(error)
        # a damaged description may send its reader to other files of its folder
        if not any(name in text for name in (path.name, f"/{target.name}/", *target.names)):
            return "nameless refusal", _where(error)
        return "refused", text
    return "accepted", ""


def ran_out(error: BaseException | None) -> bool:
    """Whether memory ran out here, also where a reader has made another exception of it."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate" in str(error).lower() or "bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tools/fuzz/" not in f.filename]
    places = [f"{Path(f.filename).parent.name}/{Path(f.filename).name}:{f.lineno}" for f in frames[-3:]]
    return f"{type(error).__name__}: {str(error)[:300]} [{' > '.join(places)}]"


class Fuzzer:
    """Whole files in `folder`, one sub-folder a target; `inputs` damages them one at a time and puts them right again."""

    def __init__(self, folder: Path, chosen: list[Target]) -> None:
        self.folder = folder
        self.chosen = chosen
        self._whole: dict[tuple[str, str], bytes] = {}
        for target in chosen:
            home = folder / target.name
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            target.write(home)
            for name in target.files:
                self._whole[target.name, name] = (home / name).read_bytes()

    def check_whole(self) -> Iterator[tuple[str, str, str, str]]:
        """(target, file, verdict, text): every whole file must be accepted, every liar refused."""
        for target in self.chosen:
            for name in (*target.files, *target.liars):
                verdict, text = judge(target, self.folder / target.name / name)
                if verdict in ("accepted", "refused"):
                    expected = "refused" if name in target.liars else "accepted"
                    verdict = verdict if verdict == expected else f"{expected} was expected"
                yield target.name, name, verdict, text

    def damaged(self, seed: int, number: int) -> tuple[Target, str, bytes]:
        """Input `number` of a run: the same for the same seed and targets."""
        chance = random.Random(f"{seed}/{number}")
        target = self.chosen[number % len(self.chosen)]
        name = chance.choice(target.files)
        return target, name, mutate(name, self._whole[target.name, name], chance)

    def read_damaged(self, target: Target, name: str, data: bytes) -> tuple[str, str]:
        path = self.folder / target.name / name
        path.write_bytes(data)
        try:
            return judge(target, path)
        finally:
            path.write_bytes(self._whole[target.name, name])


def main(known: dict[str, Target] | None = None) -> None:
    """One worker. known: other targets than the project's, for the tests of the fuzzer itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--targets", nargs="*", default=[])
    arguments = parser.parse_args()

    with os.fdopen(arguments.pipe, "w", buffering=1) as pipe:

        def say(**line: Any) -> None:
            pipe.write(json.dumps(line) + "\n")

        known = known or targets()
        chosen = [known[name] for name in arguments.targets] or list(known.values())
        fuzzer = Fuzzer(arguments.folder, chosen)
        say(kind="ready")
        # Reading the whole files once without a limit loads every library.
        for target in chosen:
            for name in target.files:
                judge(target, fuzzer.folder / target.name / name)
        limit_memory()
        if arguments.first == 0:
            for target, name, verdict, text in fuzzer.check_whole():
                say(kind="whole", target=target, file=name, verdict=verdict, text=text)
        began = time.monotonic()
        for number in range(arguments.first, arguments.inputs):
            if time.monotonic() - began > arguments.seconds:
                break
            target, name, data = fuzzer.damaged(arguments.seed, number)
            say(kind="begin", number=number, target=target.name, file=name)
            verdict, text = fuzzer.read_damaged(target, name, data)
            say(kind="end", number=number, target=target.name, file=name, verdict=verdict, text=text)
        say(kind="done")


if __name__ == "__main__":
    main()
