"""Tables, the machine they were measured on, and their sections in docs/benchmarks.md."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
GEOMETRY = ROOT / "docs" / "geometry.md"
#: Order of the sections in the document.
SECTIONS = ("operations", "cost", "cpu", "checkout", "gpu", "gpu2", "loading", "tiling")
_INTRODUCTION = """# Benchmarks

What the pack costs, measured against the reference's procedure in one run on one machine, with the ratio of
counted operations beside each measured ratio. Weights are random: time and memory do not depend on their
values. Every section is written by the command that stands in it. In the GPU tables *cuDNN attention* is what the nodes choose on
a card of that kind (compute capability 9.0); the other rows have the order that ComfyUI asks torch for.

Pages of their own: [geometry](geometry.md), [what fewer bits do](precision.md), [what BF16 labels cost](quantization.md),
[memory in training](training.md), [the gallery](gallery.md), [the paper's thesis in miniature](thesis.md).
"""


@dataclass(frozen=True)
class Table:
    """A table of strings; the first column is text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """Processor, cores and memory in one line."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(
            r"Model name:\s*(.+)",
            subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout,
        )
        model = found.group(1).strip() if found else model
    except (OSError, subprocess.CalledProcessError):
        pass  # no lscpu here (macOS, Windows): the platform's own word for it has to do
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB memory"
    return f"{model}, {os.cpu_count()} cores{memory}"


def versions(*packages: str) -> str:
    """Python and the installed versions of packages."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def comfyui_version() -> str:
    """The version of the ComfyUI that is imported in this process."""
    import comfyui_version as found

    return f"ComfyUI {found.__version__}"


def section(
    key: str,
    title: str,
    text: str,
    command: str,
    write: bool,
    where: str = "",
    document: Path | None = None,
    day: str | None = None,
) -> None:
    """Print a section, and with `write` replace it in docs/benchmarks.md, leaving the other sections as
    they are.

    where: machine and versions, for measured sections. document: another file than docs/benchmarks.md; what
    stands before its first section is its own, and a new section goes to its end. day: when it was measured, today if not given.
    """
    lines = [
        f"## {title}",
        text,
        f"`{command}`" + (f" on {day or date.today().isoformat()}. {where}" if where else ""),
    ]
    body = "\n\n".join(lines)
    print(body)
    if write:
        _replace(key, body, document or DOCUMENT)


def holds_measurement(key: str) -> bool:
    """Whether docs/benchmarks.md has a section of this key that was measured: it ends with a day and a machine."""
    body = _sections(DOCUMENT.read_text() if DOCUMENT.is_file() else "").get(key, "")
    return re.search(r"` on \d{4}-\d\d-\d\d\. [^\n]+$", body) is not None


def _sections(page: str) -> dict[str, str]:
    return {
        found.group(1): found.group(2)
        for found in re.finditer(r"<!-- begin (\w+) -->\n(.*?)\n<!-- end \1 -->", page, re.DOTALL)
    }


def _replace(key: str, body: str, document: Path) -> None:
    before = document.read_text() if document.is_file() else ""
    sections = _sections(before)
    sections[key] = body
    if document == DOCUMENT:
        introduction = _INTRODUCTION
        order = [*SECTIONS, *sorted(set(sections) - set(SECTIONS))]
    else:
        introduction = before.split("<!-- begin ")[0].rstrip("\n") + "\n"
        order = list(sections)
    text = introduction + "".join(
        f"\n<!-- begin {k} -->\n{sections[k]}\n<!-- end {k} -->\n" for k in order if k in sections
    )
    document.parent.mkdir(exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=document.parent, suffix=".part")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, document)
