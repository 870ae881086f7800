"""Numbers of a run as JSON lines, one row a step, each step once however often the run is killed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LOSSES, VALIDATION = "losses.jsonl", "validation.jsonl"
"""The journals in a run's folder."""


class Journal:
    """A file of rows with a growing `step`. A full disk is logged and survived: the row is missing then."""

    def __init__(self, path: Path):
        self._path = path
        self._warned = False

    def resume(self, step: int) -> None:
        """Drop the rows after `step`, which will be written again, and what a kill or a full disk left half
        written."""
        if not self._path.is_file():
            return
        kept = [row for row in read_journal(self._path) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if text.encode() == self._path.read_bytes():
            return
        temporary = self._path.with_name(f".{self._path.name}.part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it has a "step"."""
        line = (json.dumps(dict(row)) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if file.write(line) < len(line):
                    file.truncate(size)
                    raise OSError("the disk is full")
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.error("'%s' cannot be written (%s); the run goes on without", self._path, error)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal, each step once, the latest of it, in order. Half a line is left out.

    Raises FileNotFoundError when there is no such file.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [rows[step] for step in sorted(rows)]
