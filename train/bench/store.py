"""What a run has finished, on disk: one line an image, appended by each process to a file of its own.

    <out>/run.json                       what is evaluated; another method in the same folder is refused
    <out>/parts/<benchmark>.<rank>.jsonl  one JSON object a finished image
    <out>/<benchmark>.csv, summary.json, tables.md    written when all images are in

A process that is killed leaves at most one torn last line, which counts for nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fe2e_core.files import Unfinished

FORMAT = 1


def write_text(path: Path, text: str) -> None:
    """Replace a file, whole or not at all."""
    with Unfinished(path) as file:
        file.write(text.encode("utf-8"))


def read_json(path: Path) -> Any:
    """Raises FileNotFoundError, or ValueError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}; delete the folder and start again") from error


class Store:
    """The folder of one run, as one process sees it. `identity` says whose results these are: values are strings.
    `threads`: with how many CPU threads the run began; sums over another number round differently in the last digits.
    The process of rank 0 comes first. Raises ValueError when the folder holds results of another identity."""

    def __init__(self, folder: Path, identity: dict[str, str], rank: int = 0, threads: int = 1):
        self.folder = folder
        self._parts = folder / "parts"
        self._rank = rank
        self._parts.mkdir(parents=True, exist_ok=True)
        wanted = {"format": str(FORMAT), **identity}
        note = folder / "run.json"
        if rank == 0 and not note.is_file():
            write_text(note, json.dumps({"identity": wanted, "threads": threads}, indent=2) + "\n")
        stored = read_json(note)
        try:
            found, self.threads = stored["identity"], int(stored["threads"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{note}: is not of this command; give another --out") from None
        if found != wanted:
            keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            differing = ", ".join(f"{key}: {found.get(key)} there, {wanted.get(key)} now" for key in keys)
            raise ValueError(f"{folder}: holds results of another run ({differing}); give another --out")

    def finished(self, benchmark: str) -> dict[str, dict]:
        """Result of every finished image under its name, of all processes and earlier runs."""
        results: dict[str, dict] = {}
        for path in sorted(self._parts.glob(f"{benchmark}.*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    record = json.loads(line)
                    results[record["name"]] = record["result"]
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill, or being written just now: the image is done again
        return results

    def writer(self, benchmark: str) -> Writer:
        return Writer(self._parts / f"{benchmark}.{self._rank}.jsonl")


class Writer:
    """Appends finished images to one process's file; each is on the disk before the next one begins."""

    def __init__(self, path: Path):
        self._file = path.open("ab")
        if self._file.tell():
            self._file.write(b"\n")  # closes a torn line

    def add(self, name: str, result: dict) -> None:
        self._file.write(json.dumps({"name": name, "result": result}).encode("utf-8") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
