"""Writing files that are either whole or not there, and never in the place of another."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_OWN_FILES = "/proc/self/fd"


def write_new(path: str | Path, write: Callable[[str], None]) -> None:
    """Call `write(temporary_path)`, then give the finished file its name.

    Until then the file has no name where the system can (Linux), so that even a killed process leaves nothing behind;
    elsewhere it is a hidden file in the same folder with the same extension. Raises FileExistsError if `path` exists
    by then (nothing is overwritten), OSError naming `path` if the folder cannot be written or the disk is full.
    """
    path = Path(path)
    with failures_named(path):
        unfinished = _nameless(path.parent)
        if unfinished is None:
            return _write_named(path, write)
        with unfinished:
            own = f"{_OWN_FILES}/{unfinished.fileno()}"
            write(own)
            _give_name(own, path)


@contextmanager
def failures_named(path: str | Path) -> Iterator[None]:
    """Makes what the system says of a write that failed (in a file without a name, perhaps) speak of `path`."""
    try:
        yield
    except FileExistsError:
        raise FileExistsError(f"{path} exists already and is not overwritten; choose another name") from None
    except OSError as error:
        raise OSError(f"'{path}' could not be written ({error.strerror or error}); free some room, or choose a folder that can be "
                      "written to") from error


def _nameless(folder: Path) -> IO[bytes] | None:
    """An open file in `folder` that has no name yet; None where there are no such files."""
    try:
        os.stat(_OWN_FILES)  # what names the file at the end
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "wb")
    except (AttributeError, OSError):  # no such flag here, or a file system without it
        return None


def _give_name(own: str, path: Path) -> None:
    """Names an open file, given by its path among this process's own. Raises FileExistsError when there is one."""
    folder = os.open(path.parent, os.O_DIRECTORY)
    try:  # only with a folder given does os.link follow the link to the open file
        os.link(own, path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _write_named(path: Path, write: Callable[[str], None]) -> None:
    # not tempfile: its files are private, and a saved picture should be as readable as any other new file
    temporary = path.with_name(f".part-{uuid.uuid4().hex}{path.suffix}")
    try:
        write(str(temporary))
        try:
            os.link(temporary, path)  # unlike os.replace, refuses an existing name even in a race
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(path) from None
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Unfinished:
    """A file that gets its name, in the place of what stood there, when the `with` block ends without an exception.

    Until then its bytes lie in the same folder: without a name where the system can (Linux), so that even a killed
    process leaves nothing behind, else under a hidden temporary name that an exception removes.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._temporary: Path | None = None

    def __enter__(self) -> IO[bytes]:
        unfinished = _nameless(self._path.parent)
        if unfinished is None:
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".part", dir=self._path.parent)
            self._temporary, unfinished = Path(name), os.fdopen(handle, "wb")
        self._file = unfinished
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                if self._temporary is None:
                    named = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.part")
                    _give_name(f"{_OWN_FILES}/{self._file.fileno()}", named)
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
