"""`python -m tools.matrix [--version 0.16.3 ...] [--python 3.12 ...]`: the tests of nodes and workflows against every
ComfyUI in use, and every Python that is here; the result is docs/compatibility.md.

Each pair has an environment of its own in .comfyui/environments/, with exactly what that ComfyUI's requirements ask
for. Where the Python is of the kind that runs this, the environment lies over the present one (a .pth file), so that
torch is there once; another Python gets its own torch, of the same release. Every test's outcome is kept beside the
environments when it has ended: a run that was stopped goes on where it was, and the document shows all that are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path

from tools.comfyui import ARCHIVES, CACHE, DEFAULT_VERSION, ROOT, obtain

ENVIRONMENTS = CACHE / "environments"
DOCUMENT = ROOT / "docs" / "compatibility.md"
#: The longest files come last: what can be told soon is told soon.
LONGEST = ("test_hard_knocks.py", "test_importing.py", "test_input_properties.py")
_NODES = sorted((ROOT / "tests" / "nodes").glob("test_*.py"), key=lambda path: (path.name in LONGEST, path.name))
#: Nodes in their process and over HTTP; every template over HTTP; templates opened and run by clicking, and as Nodes 2.0 draws them.
ROOMS = {
    "nodes": [path.relative_to(ROOT).as_posix() for path in _NODES],
    "workflows": ["tests/workflows/test_execution.py"],
    "browser": ["tests/workflows/test_browser.py"],
    "nodes-2.0": ["tests/workflows/test_nodes_2.py"],
}
#: The Pythons that are asked for; those that are not here are named in the document.
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCH = ("torch", "torchvision", "torchaudio")
HOUR = 3600.0


@dataclass(frozen=True)
class Outcome:
    """What one room gave with one ComfyUI and one Python. total: tests of the room. failed: their names. skipped: reason ->
    how many. day: of the last of them.
    """

    comfyui: str
    python: str
    torch: str
    frontend: str
    room: str
    total: int
    passed: int
    failed: tuple[str, ...]
    skipped: dict[str, int]
    day: str

    @property
    def left(self) -> int:
        """Tests that have not been run."""
        return max(0, self.total - self.passed - len(self.failed) - sum(self.skipped.values()))

    @property
    def order(self) -> tuple[list[int], list[int], int]:
        numbers = [[int(part) for part in text.split(".")] for text in (self.comfyui, self.python)]
        return numbers[0], numbers[1], list(ROOMS).index(self.room)

    @property
    def minor(self) -> str:
        return ".".join(self.python.split(".")[:2])


def find_python(minor: str) -> Path | None:
    """An interpreter of that release: the one running this, one on the PATH, or one that pyenv keeps."""
    names = [Path(sys.executable)] if minor == this_python() else []
    names += [Path(path) for path in [shutil.which(f"python{minor}")] if path]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names += sorted(pyenv.glob(f"{minor}.*/bin/python{minor}"))
    for path in names:
        ask = [path, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(ask, capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.strip() == minor:
            return path
    return None


def this_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def environment(version: str, minor: str, python: Path, present: bool = False) -> Path:
    """The interpreter of the environment of one pair, made when it is not there. present: the packages that are here serve
    this ComfyUI as well; nothing is installed.

    Raises subprocess.CalledProcessError when a package could not be installed.
    """
    folder = ENVIRONMENTS / f"{version}-py{minor}"
    interpreter = folder / "bin" / "python"
    described = folder / "environment.json"
    if described.is_file() and interpreter.exists():
        return interpreter
    if described.is_file() and minor == this_python():  # made with `present`
        return Path(sys.executable)
    for part in folder.glob("*"):  # what was recorded stays
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        elif part.suffix != ".jsonl":
            part.unlink()
    if present:
        folder.mkdir(parents=True, exist_ok=True)
        _describe(Path(sys.executable), described)
        return Path(sys.executable)
    subprocess.run([python, "-m", "venv", folder], check=True)
    if minor == this_python():
        below = folder / "lib" / f"python{minor}" / "site-packages" / "zz_present_environment.pth"
        below.write_text(sysconfig.get_paths()["purelib"] + "\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["train"], *extras["dev"]]
    # Which interface goes with this ComfyUI, its own requirements say.
    asked = [name for name in asked if not name.startswith("comfyui-frontend-package")]
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join([*asked, *(f"{name}=={metadata.version(name)}" for name in TORCH)]) + "\n")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", obtain(version) / "requirements.txt", "-r", wanted], check=True)
    _describe(interpreter, described)
    return interpreter


def _describe(interpreter: Path, path: Path) -> None:
    ask = (
        "import json, platform; from importlib.metadata import version as v; print(json.dumps({'python':"
        " platform.python_version(), 'torch': v('torch'), 'frontend': v('comfyui-frontend-package')}))"
    )
    path.write_bytes(subprocess.run([interpreter, "-c", ask], check=True, capture_output=True).stdout)


def run(version: str, minor: str, python: Path, room: str, files: Sequence[str] = (), present: bool = False) -> Outcome:
    """Runs the tests of one room (or only `files` of it) that have not passed yet, and keeps each outcome.

    Raises RuntimeError when pytest did not come to its end, subprocess.TimeoutExpired after two hours.
    """
    from tools.matrix_record import read

    interpreter = environment(version, minor, python, present)
    folder = ENVIRONMENTS / f"{version}-py{minor}"
    record = folder / f"{room}.jsonl"
    command = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.matrix_record",
               "--continue-on-collection-errors", f"--record={record}", *(files or ROOMS[room])]  # fmt: skip
    with open(folder / f"{room}.log", "ab") as log:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "COMFYUI_PATH": str(obtain(version))}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, timeout=2 * HOUR,
        )  # fmt: skip
    if done.returncode not in (0, 1, 5):  # passed; some failed; nothing was left to do
        raise RuntimeError(f"pytest ended with {done.returncode}; see {log.name}")
    return summary(folder, room, *read(record))


def summary(folder: Path, room: str, outcomes: dict[str, tuple[str, str]], total: int) -> Outcome:
    """The outcome of a room, from the folder of its environment and its lines."""
    described = json.loads((folder / "environment.json").read_text())
    skipped: dict[str, int] = {}
    for outcome, reason in outcomes.values():
        if outcome == "skipped":
            skipped[reason] = skipped.get(reason, 0) + 1
    return Outcome(
        comfyui=folder.name.partition("-py")[0], room=room, total=total, **described, skipped=skipped,
        # files that were collected at the second attempt have a line of their own, without a test in it
        passed=sum(outcome == "passed" and "::" in test for test, (outcome, _) in outcomes.items()),
        failed=tuple(test for test, (outcome, _) in outcomes.items() if outcome == "failed"),
        day=date.fromtimestamp((folder / f"{room}.jsonl").stat().st_mtime).isoformat(),
    )  # fmt: skip


def kept() -> list[Outcome]:
    """Every outcome beside the environments, oldest ComfyUI first."""
    from tools.matrix_record import read

    paths = [path for path in ENVIRONMENTS.glob("*/*.jsonl") if path.stem in ROOMS]
    found = [summary(path.parent, path.stem, *read(path)) for path in paths]
    # where only some files were asked for, the others count as not run
    totals = {room: max((o.total for o in found if o.room == room), default=0) for room in ROOMS}
    return sorted((replace(o, total=totals[o.room]) for o in found), key=lambda outcome: outcome.order)


def _pins(version: str, frontend: str) -> bool:
    """Whether this is the interface that a ComfyUI asks for (or that ComfyUI is not here to be asked)."""
    requirements = CACHE / version / "requirements.txt"
    return not requirements.is_file() or f"comfyui-frontend-package=={frontend}\n" in requirements.read_text()


def document(outcomes: Sequence[Outcome], absent: Iterable[str]) -> str:
    """docs/compatibility.md."""
    lines = [
        "# Which ComfyUI, which Python",
        "",
        "Written by `make matrix` (`python -m tools.matrix`). Each row is the tests of one room against one unchanged ComfyUI,",
        "on a CPU, with the packages that its own requirements ask for, or, where the interface is marked *, with those of",
        f"ComfyUI {DEFAULT_VERSION}. *nodes* is `tests/nodes`: every node, in the process of that ComfyUI and over its HTTP",
        "interface. *workflows* runs each template over HTTP. *browser* opens and runs each template by clicking, in Chromium;",
        "*nodes-2.0* opens each in the interface's other way to draw nodes, and runs one there.",
        "",
        "| ComfyUI | Python | torch | interface | tests | passed | failed | skipped | not run | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        interface = o.frontend + ("" if _pins(o.comfyui, o.frontend) else " *")
        cells = (o.comfyui, o.python, o.torch, interface, o.room, o.passed, len(o.failed), sum(o.skipped.values()), o.left, o.day)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    failed = [f"- ComfyUI {o.comfyui}, Python {o.python}: `{name}`" for o in outcomes for name in o.failed]
    lines += ["", "## Failed", "", *(failed or ["Nothing."])]
    reasons: dict[str, list[str]] = {}
    for o in outcomes:
        for reason, count in o.skipped.items():
            reasons.setdefault(reason, []).append(f"{o.comfyui} (Python {o.python}): {count}")
    lines += ["", "## Skipped", ""]
    lines += [f"- {reason}: {', '.join(where)}" for reason, where in sorted(reasons.items())] or ["Nothing."]
    lines += ["", "## Not run", ""]
    have = {(o.comfyui, o.minor, o.room) for o in outcomes}
    minors = sorted({minor for _, minor, _ in have}, key=lambda minor: int(minor.split(".")[1]))
    lines += [
        f"- {room} with ComfyUI {version} and Python {minor}"
        for version in reversed(ARCHIVES) for minor in minors for room in ROOMS if (version, minor, room) not in have
    ]  # fmt: skip
    lines += [
        f"- {o.left} of the {o.total} tests of {o.room} with ComfyUI {o.comfyui} and Python {o.minor}" for o in outcomes if o.left
    ]
    absent = list(absent)
    lines += [f"- Python {minor}" for minor in PYTHONS if minor not in {*minors, *absent}]
    lines += [f"- Python {minor}: not on the machine of these runs" for minor in absent]
    lines += [f"- anything but {platform.system()} ({platform.machine()}), and a GPU", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Test against every ComfyUI and Python; write docs/compatibility.md.")
    parser.add_argument("--version", nargs="+", choices=list(ARCHIVES), default=list(reversed(ARCHIVES)))
    parser.add_argument(
        "--python", nargs="+", default=None,
        help=f"releases such as 3.12 (default: this one; with ComfyUI {DEFAULT_VERSION} every one that is here)",
    )  # fmt: skip
    parser.add_argument("--room", nargs="+", choices=list(ROOMS), default=list(ROOMS))
    parser.add_argument("--files", nargs="+", default=[], help="only these test files of one room")
    parser.add_argument("--present", action="store_true", help="install nothing: the packages that are here serve every ComfyUI")
    parser.add_argument("--fresh", action="store_true", help="forget what was kept of these pairs and rooms")
    parser.add_argument("--document-only", action="store_true", help="run nothing, write what is kept")
    given = parser.parse_args()
    if given.files and len(given.room) != 1:
        parser.error("--files needs one --room")
    os.environ.pop("COMFYUI_PATH", None)  # it would win over every version
    found = {minor: find_python(minor) for minor in PYTHONS}
    for version in () if given.document_only else given.version:
        minors = given.python or ([m for m in PYTHONS if found[m]] if version == DEFAULT_VERSION else [this_python()])
        for minor in minors:
            python = found.get(minor) or find_python(minor)
            if python is None:
                sys.exit(f"there is no Python {minor} here")
            for room in given.room:
                if given.fresh:
                    (ENVIRONMENTS / f"{version}-py{minor}" / f"{room}.jsonl").unlink(missing_ok=True)
                o = run(version, minor, python, room, given.files, given.present and minor == this_python())
                print(f"ComfyUI {version}, Python {o.python}, {room}: {o.passed} passed, {len(o.failed)} failed, "
                      f"{sum(o.skipped.values())} skipped, {o.left} not run", flush=True)  # fmt: skip
    outcomes = kept()
    temporary = DOCUMENT.with_suffix(".tmp")
    temporary.write_text(document(outcomes, [minor for minor in PYTHONS if found[minor] is None]))
    os.replace(temporary, DOCUMENT)
    sys.exit(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    main()
