"""Getting ComfyUI from an archive: only what belongs there, all of it or nothing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tools import comfyui


def archive(path: Path, *members: tuple[str, bytes | None]) -> Path:
    """A tar file of (name, content); None makes a symbolic link to /etc/passwd."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content or b""))
    return path


def test_takes_only_the_vendored_folder(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tar.gz",
        ("top-1.0/vendor/ComfyUI/main.py", b"x = 1\n"),
        ("top-1.0/vendor/ComfyUI/comfy/sd.py", b"y = 2\n"),
        ("top-1.0/other/main.py", b"no"),
    )
    comfyui._extract(path, "vendor/ComfyUI/", tmp_path / "tree")
    files = {p.relative_to(tmp_path / "tree").as_posix() for p in (tmp_path / "tree").rglob("*") if p.is_file()}
    assert files == {"main.py", "comfy/sd.py"}


@pytest.mark.parametrize(
    "member",
    [("top-1.0/vendor/ComfyUI/../../../out.py", b"x"), ("top-1.0/vendor/ComfyUI/link", None)],
    ids=["climbs out", "link"],
)
def test_refuses_what_could_harm(tmp_path: Path, member: tuple[str, bytes | None]) -> None:
    path = archive(tmp_path / "a.tar.gz", member)
    with pytest.raises(ValueError, match="unexpected member"):
        comfyui._extract(path, "vendor/ComfyUI/", tmp_path / "deep" / "er" / "tree")
    assert not (tmp_path / "out.py").exists()


def test_a_given_path_must_be_a_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not a ComfyUI tree"):
        comfyui.obtain()
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "main.py").touch()
    assert comfyui.obtain() == tmp_path.resolve()


def test_an_unknown_version_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfyui, "CACHE", tmp_path)
    monkeypatch.setattr(comfyui.shutil, "which", lambda name: None)  # no git on this machine
    with pytest.raises(ValueError, match=r"no archive of ComfyUI 0\.0\.1"):
        comfyui.obtain("0.0.1")
    assert list(tmp_path.iterdir()) == []
