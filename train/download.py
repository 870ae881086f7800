"""One file over HTTPS: resumed where it was cut, verified on disk, under its final name only when it is right."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_PIECE = 2**20
_TIMEOUT = 60.0
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Expected:
    """What a file must be; None where that is not known. git_blob: see `ReleasedFile`."""

    bytes: int | None = None
    sha256: str | None = None
    git_blob: str | None = None


class WrongFile(OSError):
    """What came is not what was expected. It was set aside and is not under the final name."""


def download(url: str, path: Path, expected: Expected, check: Callable[[Path], None] = lambda part: None,
             on_step: OnStep | None = None, on_verify: OnStep | None = None, attempts: int = 5, wait: float = 1.0) -> str:
    """Fetch `url` to `path` by way of `<path>.part`, which stays when it fails, to go on from. Returns its SHA-256.

    check: called with the whole `.part` before it gets its name; may raise ValueError. on_step, on_verify: bytes done,
    bytes in all. attempts: tries in a row that
    bring nothing new before giving up; wait: seconds before the second of them, doubled each time. Raises WrongFile for
    another size or digest, OSError when the server cannot be reached or gives nothing.
    """
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, expected, on_step)
            break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError,
                ssl.SSLError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
                raise OSError(f"'{url}' cannot be had: the server says {error.code} {error.reason}. Check the network, or give "
                              "--base-url of a mirror") from error
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= attempts:
                raise OSError(f"'{url}' broke off {failures} times in a row ({error}); {part.stat().st_size if part.exists() else 0} "
                              "bytes are kept. Run the command again to go on") from error
            logger.info("%s: connection lost (%s), going on", path.name, error)
            time.sleep(wait * 2 ** (failures - 1))
    digest = _verify(part, expected, path.name, on_verify)
    try:
        check(part)
    except ValueError as error:
        raise WrongFile(f"'{path.name}': what '{url}' gave cannot be used ({error}); set aside as {_set_aside(part)}") from error
    os.replace(part, path)
    return digest


def _fetch_rest(url: str, part: Path, expected: Expected, on_step: OnStep | None) -> None:
    """Append what is missing. Raises http.client.IncompleteRead when the connection ends early."""
    have = part.stat().st_size if part.exists() else 0
    if expected.bytes is not None and have >= expected.bytes:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "fe2e-fetch", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: it is whole, or another file; the digest decides
            return
        raise
    with response:
        resumed = response.status == 206 and (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0  # a server that cannot resume sends everything
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else expected.bytes
        with open(part, "ab" if resumed else "wb") as file:
            while piece := response.read(_PIECE):
                file.write(piece)
                have += len(piece)
                if on_step is not None and total:
                    on_step(have, total)
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)


def _verify(part: Path, expected: Expected, name: str, on_step: OnStep | None) -> str:
    """SHA-256 of a file. Raises WrongFile, after setting it aside, when it is not the expected one."""
    found = identify(part, on_step)
    for what in ("bytes", "sha256", "git_blob"):
        wanted, is_ = getattr(expected, what), getattr(found, what)
        if wanted not in (None, is_):
            raise WrongFile(f"'{name}': its {what} is {is_}, expected {wanted}: this is not the released file; set aside as "
                            f"{_set_aside(part)}. Run the command again, or choose another mirror")
    return found.sha256


def identify(path: Path, on_step: OnStep | None = None) -> Expected:
    """Size, SHA-256 and git blob id of a file, all three known."""
    size, done = path.stat().st_size, 0
    digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            blob.update(piece)
            done += len(piece)
            if on_step is not None:
                on_step(done, size)
    return Expected(size, digest.hexdigest(), blob.hexdigest())


def _set_aside(part: Path) -> Path:
    """Give a wrong file a name from which nobody goes on."""
    rejected = part.with_suffix(".rejected")
    with contextlib.suppress(OSError):
        os.replace(part, rejected)
    return rejected


def matches(path: Path, expected: Expected, on_step: OnStep | None = None) -> bool:
    """Whether a file that is there already is the expected one, as far as that is known."""
    if expected.bytes not in (None, path.stat().st_size):
        return False
    found = identify(path, on_step)
    return expected.sha256 in (None, found.sha256) and expected.git_blob in (None, found.git_blob)
