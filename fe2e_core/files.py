"""Writing files that are either whole or not there, and never in the place of another."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_new(path: str | Path, write: Callable[[str], None]) -> None:
    """Call `write(temporary_path)`, then give the finished file its name.

    The temporary file lies in the same folder and has the same extension, because some writers look at it.
    Raises FileExistsError if `path` exists by then (nothing is overwritten), OSError if the folder cannot be
    written; the temporary file is removed in every case.
    """
    path = Path(path)
    # not tempfile: its files are private, and a saved picture should be as readable as any other new file
    temporary = path.with_name(f".part-{uuid.uuid4().hex}{path.suffix}")
    try:
        write(str(temporary))
        try:
            os.link(temporary, path)  # unlike os.replace, refuses an existing name even in a race
        except FileExistsError:
            raise FileExistsError(
                f"{path} exists already and is not overwritten; choose another name"
            ) from None
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(
                    f"{path} exists already and is not overwritten; choose another name"
                ) from None
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_OWN_FILES = "/proc/self/fd"


class Unfinished:
    """A file that gets its name, in the place of what stood there, when the `with` block ends without an exception.

    Until then its bytes lie in the same folder: without a name where the system can (Linux), so that even a killed
    process leaves nothing behind, else under a hidden temporary name that an exception removes.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._temporary: Path | None = None

    def __enter__(self) -> IO[bytes]:
        folder = self._path.parent
        try:
            os.stat(_OWN_FILES)  # what names the file at the end
            self._file = os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o644), "wb")
        except (AttributeError, OSError):  # no such flag here, or a file system without it
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".part", dir=folder)
            self._temporary, self._file = Path(name), os.fdopen(handle, "wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                if self._temporary is None:
                    named = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.part")
                    folder = os.open(self._path.parent, os.O_DIRECTORY)
                    try:  # only with a folder given does os.link follow the link to the open file
                        os.link(f"{_OWN_FILES}/{self._file.fileno()}", named.name, dst_dir_fd=folder)
                    finally:
                        os.close(folder)
                    self._temporary = named
                else:
                    os.chmod(self._temporary, 0o644)
            self._file.close()
            if kind is None:
                os.replace(self._temporary, self._path)
                self._temporary = None
        finally:
            self._file.close()
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)


def sha256(path: str | Path, on_step: Callable[[int, int], None] | None = None) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces. on_step(bytes done, bytes in all) may raise to stop."""
    digest, done, size = hashlib.sha256(), 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while piece := file.read(2**23):
            digest.update(piece)
            done += len(piece)
            if on_step is not None:
                on_step(done, size)
    return digest.hexdigest()
