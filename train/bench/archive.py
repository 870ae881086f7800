"""Files inside a tar or a zip, or in a folder, read one by one; nothing is unpacked."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path, PurePosixPath


class Archive:
    """`read(name)` gives a member's bytes; `names` are all files, with forward slashes and without a leading "./".

    An uncompressed tar, a zip, or a folder that holds what such an archive would. One object must not be used by two
    threads or two processes at once: each opens its own. Raises FileNotFoundError, or ValueError for a file of
    another kind and for a compressed tar, in which every read would start from its beginning.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._tar: tarfile.TarFile | None = None
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            files = (file for file in self.path.rglob("*") if file.is_file())
            entries = {file.relative_to(self.path).as_posix(): file for file in files}
        elif not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such archive")
        elif zipfile.is_zipfile(self.path):
            self._zip = zipfile.ZipFile(self.path)
            entries = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        else:
            try:
                self._tar = tarfile.open(self.path, "r:")
            except tarfile.ReadError as error:
                raise ValueError(
                    f"{self.path}: {error}; expected a zip, or a tar without compression (a .tar.gz has to be "
                    "decompressed to .tar first: it cannot be read from the middle)"
                ) from error
            try:
                entries = {member.name: member for member in self._tar if member.isfile()}
            except tarfile.ReadError as error:
                raise ValueError(f"{self.path}: {error}; the archive is not whole, download it again") from error
        self._entries = {name.removeprefix("./"): entry for name, entry in sorted(entries.items()) if not _junk(name)}

    @property
    def names(self) -> tuple[str, ...]:
        """All files, sorted."""
        return tuple(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises FileNotFoundError for a name it does not hold, ValueError for a damaged one."""
        if name not in self._entries:
            raise FileNotFoundError(f"{self.path}: holds no file '{name}'; download the archive again")
        entry = self._entries[name]
        try:
            if self._zip is not None:
                return self._zip.read(entry)
            if self._tar is not None:
                data = self._tar.extractfile(entry).read()
                if len(data) != entry.size:
                    raise ValueError(f"found {len(data)} of {entry.size} bytes")
                return data
        except (zipfile.BadZipFile, tarfile.TarError, ValueError) as error:
            raise ValueError(f"{self.path}: '{name}' is damaged ({error}); download the archive again") from error
        return Path(entry).read_bytes()

    def close(self) -> None:
        for opened in (self._tar, self._zip):
            if opened is not None:
                opened.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _junk(name: str) -> bool:
    """What macOS adds to archives: files that carry the names of the true ones."""
    return any(part == "__MACOSX" or part.startswith("._") for part in PurePosixPath(name).parts)
