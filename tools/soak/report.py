"""The results of the soak in docs/reliability.md, one row a check; the other rows and the text around them stay."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tools.comfyui import ROOT
from tools.soak.result import Result

DOCUMENT = ROOT / "docs" / "reliability.md"
_HEAD = "| check | what was done | what was found | failures | when, how long |\n| --- | --- | --- | --- | --- |"
_TABLE = re.compile(r"(<!-- begin soak -->\n).*?(\n<!-- end soak -->)", re.DOTALL)


def keep(name: str, result: Result) -> None:
    """Puts the row of one check into the document. Raises ValueError when the document has no table for it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = _TABLE.search(text)
    if found is None:
        raise ValueError(f"{DOCUMENT.name}: there is no table between '<!-- begin soak -->' and '<!-- end soak -->'")
    rows = {row.split("|")[1].strip(): row for row in found.group(0).splitlines() if row.startswith("| ") and "---" not in row}
    rows.pop("check", None)
    when = f"{date.today().isoformat()}, {result.seconds / 60:.0f} min, {platform.system()}, {os.cpu_count()} cores"
    cells = (name, result.done, result.found, str(len(result.failures)), when)
    rows[name] = "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
    table = "\n".join([_HEAD, *rows.values()])
    text = _TABLE.sub(lambda match: match.group(1) + table + match.group(2), text)
    handle, temporary = tempfile.mkstemp(dir=DOCUMENT.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, DOCUMENT)


def draw_memory(megabytes: Sequence[float], settled: int, path: Path, size: tuple[int, int] = (900, 320)) -> None:
    """Memory after each prompt as a line; what does not count is grey."""
    (width, height), margin = size, 46
    low, high = min(megabytes), max(megabytes)
    span = max(high - low, 1.0)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)

    def place(number: int, value: float) -> tuple[float, float]:
        x = margin + (width - 2 * margin) * number / max(1, len(megabytes) - 1)
        return x, height - margin - (height - 2 * margin) * (value - low) / span

    draw.rectangle((margin, margin, width - margin, height - margin), outline="#999999")
    points = [place(number, value) for number, value in enumerate(megabytes)]
    draw.line(points[: settled + 1], fill="#aaaaaa", width=2)
    draw.line(points[settled:], fill="#1f4e9c", width=2)
    draw.text((margin, 12), f"Memory of the ComfyUI process in MB after each of {len(megabytes)} prompts", fill="black", font=font)
    draw.text((4, margin - 8), f"{high:.0f}", fill="black", font=font)
    draw.text((4, height - margin - 8), f"{low:.0f}", fill="black", font=font)
    draw.text((margin, height - margin + 6), "1", fill="black", font=font)
    draw.text((width - margin - 24, height - margin + 6), str(len(megabytes)), fill="black", font=font)
    canvas.save(path)
