"""Disks that are full or may not be written to: an error that names the file, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fe2e_core import files
from tests.core.full_disk import LIMIT, writers

ROOT = Path(__file__).resolve().parents[2]


def save_all(folder: Path, limit: int) -> list:
    command = [sys.executable, "-m", "tests.core.full_disk", str(folder), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_file_that_the_disk_cuts_off_is_not_there(tmp_path):
    """The file-size limit of the system fails in the middle of a write, as a full disk does."""
    folder = tmp_path / "größe 深度"
    folder.mkdir()
    for kind, exception, message, left in save_all(folder, LIMIT):
        assert exception and "OSError" in exception, kind
        assert str(folder / "a.") in message and "free some room" in message, (kind, message)
        assert left == [], kind


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system(small_disk):
    for kind, exception, message, left in save_all(small_disk, 0):
        if exception is None:  # small enough
            assert kind == "png", kind
            (small_disk / "a.png").unlink()
            continue
        assert "OSError" in exception and str(small_disk / "a.") in message, (kind, message)
        assert [name for name in left if name != "a.png"] == [], kind
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for kind, exception, message, left in save_all(small_disk, 0):
        assert exception and "OSError" in exception and str(small_disk / "a.") in message, (kind, exception, message)
        assert left == [], kind


@pytest.mark.parametrize("nameless", [True, False])
def test_files_are_whole_and_readable_by_others(tmp_path, monkeypatch, nameless):
    if not nameless:  # a system without files that have no name
        monkeypatch.setattr(files, "_nameless", lambda folder: None)
    elif files._nameless(tmp_path) is None:
        pytest.skip("no files without a name here")
    seen = []
    for name, write in writers(tmp_path).items():
        before = set(os.listdir(tmp_path))
        write()
        seen.append(name)
        [new] = set(os.listdir(tmp_path)) - before or [None]
        assert new is not None, name
        assert os.stat(tmp_path / new).st_mode & 0o444 == 0o444, name
        if name != "safetensors":
            with pytest.raises(FileExistsError, match="not overwritten"):
                write()
        assert set(os.listdir(tmp_path)) == before | {new}
        (tmp_path / new).unlink()
    assert len(seen) == 5
