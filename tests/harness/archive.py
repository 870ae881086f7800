"""The archive that the registry would hand out, made of the working tree by comfy-cli's own code."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tools.comfyui import ROOT


def source_files() -> list[str]:
    """Paths of all files that are in git or would be added. Skips where the project is no checkout: comfy-cli packs
    what git lists.
    """
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def pack_working_tree(folder: Path) -> Path:
    """Path of the archive, below `folder`. What is not committed yet counts as committed, in a repository of its own."""
    from comfy_cli.file_utils import zip_files

    tree, archive = folder / "tree", folder / "node.zip"
    for name in source_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=tree, check=True, capture_output=True)
    with contextlib.chdir(tree):
        zip_files(str(archive))
    shutil.rmtree(tree)
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """What ComfyUI Manager does with the archive."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
