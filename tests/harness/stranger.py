"""A machine that has ComfyUI and has never seen the pack: an environment without what only the pack asks for, a package
index and a public repository of its own, and no way to any other.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

from tests.harness.archive import source_files
from tools.comfyui import CACHE, ROOT

PUBLIC = "https://github.com/fe2e-comfy/fe2e-nodes"
#: Distributions that the pack asks for and ComfyUI does not.
OURS_ALONE = ("OpenEXR",)


class Stranger:
    """home: where they type. python: of their environment, which is the present one, by links, without OURS_ALONE: torch
    and what ComfyUI asks for are there once. Nothing outside `home` is changed.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = home / "environment"
        self.python = self.environment / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.environment], check=True)
        self._lay_over_the_present_one()
        self.index = home / "index"
        self.index.mkdir()
        for name in OURS_ALONE:
            wheel_of(name, self.index)
        self.repository = home / "public"
        publish(self.repository)

    def _lay_over_the_present_one(self) -> None:
        hidden = set()
        for name in OURS_ALONE:
            files = metadata.distribution(name).files or ()
            hidden |= {file.parts[0] for file in files if file.parts[0] != ".."}
        below = self.environment / "below"
        below.mkdir()
        present = Path(sysconfig.get_paths()["purelib"])
        for entry in present.iterdir():
            if entry.name not in hidden and entry.name != "__pycache__":
                (below / entry.name).symlink_to(entry)
        [site] = (self.environment / "lib").glob("python*/site-packages")
        (site / "below.pth").write_text(f"{below}\n")
        # an environment that itself lies over another one
        for path in present.glob("*.pth"):
            shutil.copyfile(path, site / path.name)
        scripts = self.environment / "bin"
        for script in Path(sysconfig.get_paths()["scripts"]).iterdir():
            if not (scripts / script.name).exists() and script.name.partition("-")[0] in ("pip", "comfy", "ruff", "torchrun", "accelerate"):
                lines = script.read_bytes().split(b"\n", 1)
                if lines[0].startswith(b"#!") and b"python" in lines[0]:
                    (scripts / script.name).write_bytes(b"#!" + os.fsencode(self.python) + b"\n" + lines[1])
                    (scripts / script.name).chmod(0o755)
                else:
                    (scripts / script.name).symlink_to(script)

    def type(self, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs lines of a shell in `folder`, stopping at the first that fails. No package and no repository but theirs."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("FE2E_", "MAKE", "PIP_", "PYTHON"))},
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home), "NO_COLOR": "1",
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
            "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": f"url.file://{self.repository}.insteadOf", "GIT_CONFIG_VALUE_0": PUBLIC,
            "GIT_CONFIG_KEY_1": "safe.directory", "GIT_CONFIG_VALUE_1": "*",
        }  # fmt: skip
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
        )  # fmt: skip

    def set_up(self, checkout: Path) -> None:
        """What `make setup` leaves in a checkout, without fetching torch and ComfyUI a second time: .venv is this
        environment, .comfyui the one that is here.
        """
        (checkout / ".venv").symlink_to(self.environment)
        (checkout / ".comfyui").symlink_to(CACHE)
        for stamp in (".created", ".torch", ".packages"):
            (self.environment / stamp).touch()


def publish(folder: Path) -> None:
    """The working tree as a repository of one commit: what is not committed yet counts as committed."""
    for name in source_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
        shutil.copymode(ROOT / name, folder / name)
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", "The working tree"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def wheel_of(name: str, folder: Path) -> Path:
    """The wheel that an installed distribution was installed from, made again from its files."""
    found = metadata.distribution(name)
    tag = next(line.partition(": ")[2] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: "))
    path = folder / f"{found.name.replace('-', '_')}-{found.version}-{tag}.whl"
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in found.files or ():
            if file.parts[0] == ".." or "__pycache__" in file.parts or file.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                continue
            data = Path(file.locate()).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append([file.as_posix(), f"sha256={digest}", str(len(data))])
            wheel.writestr(file.as_posix(), data)
        information = next(Path(row[0]).parts[0] for row in rows if ".dist-info" in row[0])
        record = io.StringIO()
        csv.writer(record, lineterminator="\n").writerows([*rows, [f"{information}/RECORD", "", ""]])
        wheel.writestr(f"{information}/RECORD", record.getvalue())
    return path
