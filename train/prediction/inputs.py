"""What there is to predict: files, folders, videos and shards, in an order and under names that never depend on
how many processes share the work."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from train.prediction.reading import PICTURES, SHARDS, VIDEOS

PICTURE, VIDEO, SHARD = "picture", "video", "shard"
_KINDS = {**dict.fromkeys(PICTURES, PICTURE), **dict.fromkeys(VIDEOS, VIDEO), **dict.fromkeys(SHARDS, SHARD)}


@dataclass(frozen=True)
class Work:
    """One input file.

    kind: PICTURE, VIDEO or SHARD. name: of its results below the output folder, with "/" between folders; a
    picture's has no extension, a video's is a folder, a shard's is a tar. bytes: the file's size, 0 where there is none.
    """

    kind: str
    path: Path
    name: str
    bytes: int


def find_work(inputs: Iterable[str | Path], output: Path, root: Path | None = None) -> list[Work]:
    """All files of `inputs`: files of any name (what is no video and no tar by its ending is taken for a picture),
    and folders with everything below them that looks like a picture, video or tar; hidden files and folders and
    `output` are passed over. A file that does not exist is work too: reading it will say so.

    Results are named by the path below the folder that was given; a file given itself by its path below `root`,
    else by its own name. Of two pictures that differ in the extension only, both keep it. The same file given
    twice counts once. Raises ValueError when there is nothing, or when two inputs would have the same results.
    """
    found: dict[Path, tuple[str, Path, str, int]] = {}
    for given in inputs:
        path = Path(given)
        entries = _folder(path, output) if path.is_dir() else [(path, _own_name(path, root))]
        for file, name in entries:
            kind = _KINDS.get(file.suffix.lower(), PICTURE)
            found.setdefault(file.absolute(), (kind, file, name, _size(file)))
    if not found:
        raise ValueError(
            f"inputs: no picture, video or tar in {', '.join(map(str, inputs)) or 'them'}; expected files, or folders "
            f"with {' '.join(_KINDS)}"
        )
    # without regard to case: on some systems a.png and A.png are one file
    shared = Counter(_stem(name).casefold() for kind, _, name, _ in found.values() if kind == PICTURE)
    work = []
    for kind, path, name, size in found.values():
        alone = kind == PICTURE and shared[_stem(name).casefold()] == 1
        work.append(Work(kind, path, _stem(name) if alone else name, size))
    _refuse_same_names(work)
    return work


def read_list(path: Path) -> Iterator[str]:
    """The paths in a text file, one a line; empty lines are passed over. Raises OSError, ValueError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--list {path}: {error}; expected UTF-8 text with one path a line") from error
    return (line.strip() for line in lines if line.strip())


def _folder(folder: Path, output: Path) -> Iterator[tuple[Path, str]]:
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if here.absolute() == output.absolute():
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in _KINDS:
                yield here / name, (here / name).relative_to(folder).as_posix()


def _own_name(path: Path, root: Path | None) -> str:
    if root is None:
        return path.name
    try:
        return path.absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        raise ValueError(f"--root {root}: {path} does not lie below it; give a folder above all inputs") from None


def _stem(name: str) -> str:
    """The name without its extension."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (Path(file).stem or file)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refuse_same_names(work: list[Work]) -> None:
    first: dict[str, Work] = {}
    for item in work:
        other = first.setdefault(item.name.casefold(), item)
        if other is not item:
            raise ValueError(
                f"{other.path} and {item.path} would both be written as '{item.name}'; give --root, a folder above "
                "both, or predict them into different output folders"
            )
