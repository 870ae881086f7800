"""The commands that the project's documents tell people to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.comfyui import ROOT

#: A line of a code block, or code in a sentence, is a command when it begins with one of these.
PROGRAMS = ("apt-get", "bash", "cd", "comfy", "curl", "export", "git", "make", "mkdir", "pip", "pytest", "python", "python3",
            "ruff", "sh", "source", "sudo", "uv", "wget")  # fmt: skip
_ASSIGNMENTS = r"(?:[A-Z_0-9]+=\S+ +)*"
_COMMAND = re.compile(rf"{_ASSIGNMENTS}(?:{'|'.join(PROGRAMS)}) \S")
_FENCE = re.compile(r"\s*(?:```|~~~)")


@dataclass(frozen=True)
class Block:
    """One code block. document: relative to the root. line: of its first line, from 1."""

    document: str
    line: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def is_shell(self) -> bool:
        """Whether all its lines are commands. ValueError when only some of them are: nobody could paste that."""
        joined = self.text.replace("\\\n", " ").split("\n")
        said = [bool(_COMMAND.match(line)) for line in joined if line.strip() and not line.startswith("#")]
        if any(said) and not all(said):
            raise ValueError(f"{self.place}: commands and other lines are mixed in one block")
        return any(said)


def documents() -> list[Path]:
    """What people are told to read: the documents at the root, in docs/ and beside the models."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")])


def blocks(path: Path) -> Iterator[Block]:
    """Fenced code blocks, and indented ones that stand between empty lines."""
    name, lines = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8").splitlines()
    kept: list[str] = []
    fenced = False
    for number, line in enumerate([*lines, ""], 1):
        if _FENCE.match(line):
            fenced = not fenced
            ends = not fenced
        elif fenced or (line.startswith("    ") and (kept or not lines[number - 2].strip())):
            kept.append(line if fenced else line[4:])
            continue
        else:
            ends = True
        if ends and kept:
            yield Block(name, number - len(kept), tuple(kept))
            kept = []


def mentioned(path: Path) -> Iterator[Block]:
    """Commands inside sentences, in `backticks`, each as a block of its own."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        if fenced or line.startswith("    "):
            continue
        for code in re.findall(r"`([^`]+)`", line):
            if _COMMAND.match(code):
                yield Block(path.relative_to(ROOT).as_posix(), number, (code,))
