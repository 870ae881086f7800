"""The commands that the project's documents tell people to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.comfyui import ROOT

#: A line of a code block, or code in a sentence, is a command when it begins with one of these.
PROGRAMS = ("accelerate", "apt-get", "bash", "cd", "comfy", "curl", "export", "git", "make", "mkdir", "pip", "pytest", "python",
            "python3", "ruff", "sh", "source", "sudo", "torchrun", "uv", "wget")  # fmt: skip
_COMMAND = re.compile(rf"(?:[A-Z_0-9]+=\S+ +)*(?:{'|'.join(PROGRAMS)}) \S")
_FENCE = re.compile(r"\s*(?:```|~~~)")


@dataclass(frozen=True)
class Block:
    """One code block, or code inside a sentence. document: relative to the root. line: of its first line, from 1."""

    document: str
    line: int
    text: str
    inline: bool = False

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """One for each command, without comments; `a && b` are two, lines that end in a backslash are joined."""
        lines = re.sub(r"\\\n\s*", "", self.text).split("\n")
        typed = [re.sub(r"\s+#.*$", "", line).strip() for line in lines if _COMMAND.match(line)]
        return [command for line in typed for command in line.split(" && ")]

    @property
    def is_mixed(self) -> bool:
        """Whether some lines are commands and others are not: nobody could paste that."""
        lines = [line for line in re.sub(r"\\\n\s*", "", self.text).split("\n") if line.strip() and not line.startswith("#")]
        return len({bool(_COMMAND.match(line)) for line in lines}) > 1


def documents() -> list[Path]:
    """What people are told to read: the documents at the root, in docs/ and beside the models."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")])


def blocks(path: Path) -> Iterator[Block]:
    """Fenced code blocks, indented ones that stand between empty lines, and `commands` inside sentences."""
    name, lines = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8").splitlines()
    kept: list[str] = []
    fenced = False
    for number, line in enumerate([*lines, ""], 1):
        fence = bool(_FENCE.match(line))
        if not fence and (fenced or (line.startswith("    ") and (kept or not lines[number - 2].strip()))):
            kept.append(line if fenced else line[4:])
            continue
        fenced ^= fence
        if kept:
            yield Block(name, number - len(kept), "\n".join(kept))
            kept = []
        for code in re.findall(r"`([^`]+)`", line):
            if not fence and _COMMAND.match(code):
                yield Block(name, number, code, inline=True)
