"""What the study has found so far: one JSON, replaced whole whenever something is added."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from train.thesis.sharing import claimed

PARTS = ("floor", "sweep", "bases", "runs", "features", "maps")
"""Tables of the JSON, each by a key such as "id6/0": row and seed."""

_DIGITS = 5


def guess_key(what: str) -> str:
    """Where the scores of a guess that ignores the picture stand in "floor": of a kind of label, or "normals"."""
    return f"guess, {what}"


def _rounded(value: Any) -> Any:
    """Floats to five significant digits: what is beyond them is noise, and the file stays readable."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value


class Results:
    """The JSON at `path`. identity: what its numbers depend on (`ThesisConfig.identity`, the autoencoder's digest).

    Several processes may add to one file; `lock` is where they take turns. Raises ValueError when the file holds numbers of
    another identity, or is no such file."""

    def __init__(self, path: Path, identity: str, autoencoder: str, lock: Path):
        self.path, self._lock, self._spent = path, lock, 0.0
        about = {"config": json.loads(identity), "autoencoder": autoencoder}
        self.data: dict[str, Any] = {"about": about, "seconds": 0.0, **{part: {} for part in PARTS}}
        if path.is_file():
            found = read_results(path)
            if found["about"] != about:
                raise ValueError(
                    f"'{path}' has the results of another configuration or autoencoder; move it away, or give another "
                    "'documents' folder in the configuration"
                )
            self.data = found

    def refresh(self) -> None:
        """Take in what other processes have added."""
        if self.path.is_file():
            self.data = read_results(self.path)

    def has(self, part: str, key: str) -> bool:
        if key not in self.data[part]:
            self.refresh()
        return key in self.data[part]

    def get(self, part: str, key: str) -> Any:
        return self.data[part][key]

    def add(self, part: str, key: str, value: Any) -> None:
        """Put one entry in and write the file."""
        with claimed(self._lock, wait=True):
            self.refresh()
            self.data[part][key] = _rounded(value)
            self.data["seconds"] = round(self.data["seconds"] + self._spent, 1)
            self._spent = 0.0
            self._write()

    def spend(self, seconds: float) -> None:
        """Count processor time; written with the next entry."""
        self._spent += seconds

    def _write(self) -> None:
        lines = []
        for name, part in self.data.items():
            if name in PARTS:  # one entry a line
                rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items()]
                lines.append(f"{json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n}")
            else:
                lines.append(f"{json.dumps(name)}: {json.dumps(part)}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        os.replace(temporary, self.path)


def read_results(path: Path) -> dict[str, Any]:
    """The tables of a results file. FileNotFoundError, or ValueError when it is something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is no JSON ({error}); expected the results of `python -m train thesis`") from error
    if not isinstance(data, dict) or not {"about", "seconds", *PARTS} <= set(data):
        raise ValueError(f"'{path}' is not a results file of `python -m train thesis`; move it away")
    return data
