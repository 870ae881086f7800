"""Readers with every fault that the fuzzer is there to find, and one without: `python -m tests.harness.bad_readers`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tools.fuzz.targets import Target, require
from tools.fuzz.worker import main

WHOLE = bytes(range(200))
#: Damage that an honest reader refuses and these answer with their fault.
_FAULTS = {}


def _fault(name: str):
    def register(function):
        _FAULTS[name] = function
        return function

    return register


@_fault("crash")
def _crash(path: Path) -> None:
    os.abort()


@_fault("hang")
def _hang(path: Path) -> None:
    time.sleep(3600)


@_fault("memory")
def _memory(path: Path) -> None:
    try:
        bytearray(2**40)
    except MemoryError as error:
        raise ValueError(f"{path.name} is too large") from error


@_fault("undocumented exception")
def _undocumented(path: Path) -> None:
    raise KeyError(path.name)


@_fault("nameless refusal")
def _nameless(path: Path) -> None:
    raise ValueError("it is broken")


@_fault("broken promise")
def _promise(path: Path) -> None:
    require(False, "what was read is in order")


@_fault("refused")
def _honest(path: Path) -> None:
    raise ValueError(f"{path.name}: it is broken")


def _target(name: str, fault) -> Target:
    def read(path: Path) -> None:
        if path.read_bytes() != WHOLE:
            fault(path)

    return Target(name, lambda folder: (folder / "file.bin").write_bytes(WHOLE), read, ("file.bin",))


TARGETS = {name: _target(name, fault) for name, fault in _FAULTS.items()}

if __name__ == "__main__":
    main(TARGETS)
