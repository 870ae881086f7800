"""What is fuzzed: small valid files, and the function of the project that reads each.

A reader may return, and what it returns must keep its promises; or it may refuse, by an exception that its own
documentation names, with a message that names the file or the input. Everything else is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Read = Callable[[Path], None]
"""Reads one file, or everything around it, as its user would."""


@dataclass(frozen=True)
class Target:
    """files: names of the files that are damaged, one at a time; `write` makes them, whole, in an empty folder.

    read: given the damaged file. names: one of these, or the file's name, is in every refusal. liars: names of files
    that `write` makes on purpose wrong and that must be refused.
    """

    name: str
    write: Callable[[Path], None]
    read: Read
    files: tuple[str, ...]
    names: tuple[str, ...] = ()
    refusals: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
    liars: tuple[str, ...] = ()


def targets() -> dict[str, Target]:
    """All of them, by name. Imports torch and the readers: for the fuzzing process only."""
    import torch

    from tools.fuzz import datasets, geometries, models, settings

    torch.set_num_threads(1)  # each further thread maps an arena that the worker's limit would count
    found = [*models.TARGETS, *geometries.TARGETS, *settings.TARGETS, *datasets.TARGETS]
    return {target.name: target for target in found}


def require(condition: bool, promise: str) -> None:
    """Raise AssertionError: what a reader let through does not keep its promise. (`assert` can be switched off.)"""
    if not condition:
        raise AssertionError(promise)
