"""Names of saved files: ComfyUI's counters and variables, inside its output folder, never over another
file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import folder_paths

from ..fe2e_core.files import write_new

#: Bytes; file systems take 255, and a number, an ending and a hidden name come on top.
_LONGEST_NAME = 200


def save_next(
    prefix: str, extension: str, write: Callable[[str], None], *, width: int = 0, height: int = 0
) -> dict[str, str]:
    """Write a new file of the output folder under the next free number and return where it is.

    `prefix` is ComfyUI's filename_prefix: it may name a subfolder and hold variables such as %width%, %year% and
    %date:yyyy-MM-dd%. Returns filename, subfolder and type, as ComfyUI's history lists results. Raises ValueError for a
    prefix without a name, one that leaves the output folder or one that is too long, OSError naming the file when the
    disk does not take it.
    """
    output = folder_paths.get_output_directory()
    prefix = _with_date(prefix, datetime.now())
    parts = Path(prefix.replace("\\", "/")).parts
    if not prefix.strip() or prefix.endswith(("/", "\\")) or "\0" in prefix:
        raise ValueError(f"filename_prefix: found {prefix!r}, expected a name such as FE2E/geometry")
    if ":" in prefix:
        raise ValueError(
            f"filename_prefix: found {prefix!r}, expected no colon, which file systems refuse or read as a drive; a date is "
            "%date:yyyy-MM-dd%"
        )
    if ".." in parts or Path(prefix).is_absolute():
        raise ValueError(
            f"filename_prefix: found {prefix!r}, which leaves the output folder {output}; "
            "expected a name or a subfolder and a name, such as FE2E/geometry"
        )
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in parts):
        raise ValueError(f"filename_prefix: found a name of {max(map(len, parts))} letters, expected at most {_LONGEST_NAME} bytes")
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    while True:
        filename = f"{name}_{counter:05}_{extension}"
        try:
            write_new(Path(folder) / filename, write)
        except FileExistsError:
            counter += 1
            continue
        return {"filename": filename, "subfolder": subfolder, "type": "output"}


def _with_date(prefix: str, now: datetime) -> str:
    """%date:yyyy-MM-dd hh-mm-ss% and the like, which the interface expands for core nodes only, in its letters."""
    values = {"yyyy": f"{now:%Y}", "yy": f"{now:%y}", "MM": f"{now:%m}", "M": str(now.month), "dd": f"{now:%d}", "d": str(now.day),
              "hh": f"{now:%H}", "h": str(now.hour), "mm": f"{now:%M}", "m": str(now.minute), "ss": f"{now:%S}",
              "s": str(now.second)}  # fmt: skip

    def written(found: re.Match) -> str:
        return re.sub("yyyy|yy|MM?|dd?|hh?|mm?|ss?", lambda part: values[part[0]], found[1] or "yyyyMMddhhmmss")

    return re.sub(r"%date(?::([^%]*))?%", written, prefix)


def find_saved(name: str, what: str) -> Path:
    """A file of ComfyUI's output folder, or else of its input folder, by its name there.

    Raises ValueError for a name that leaves these folders, FileNotFoundError where neither has it; both name the input
    `what`.
    """
    bases = [os.path.realpath(folder_paths.get_output_directory()), os.path.realpath(folder_paths.get_input_directory())]
    if "\0" in name or ":" in name or os.path.isabs(name) or ".." in Path(name.replace("\\", "/")).parts:
        raise ValueError(f"{what}: found {name[:200]!r}, expected a file inside ComfyUI's output or input folder")
    for base in bases:
        path = Path(base) / name.replace("\\", "/")
        if os.path.isfile(path):  # false, too, for a name that no disk takes
            return path
    raise FileNotFoundError(
        f"{what}: found {name[:200]!r}, which is no file of ComfyUI's output or input folder ({', '.join(bases)}); give the name "
        "that the report of an earlier run shows"
    )
