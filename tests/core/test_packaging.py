"""What installing the pack does to someone's environment: as little as possible."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: Packages whose version a ComfyUI installation has chosen with care.
UNTOUCHABLE = {"torch", "torchvision", "torchaudio", "xformers", "triton", "transformers", "diffusers"}


def requirements() -> list[str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return [line for line in lines if line]


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()


def test_requirements_can_never_change_torch() -> None:
    for requirement in requirements():
        assert name_of(requirement) not in UNTOUCHABLE
        assert re.fullmatch(r"[A-Za-z0-9._-]+(>=[0-9.]+)?", requirement), f"{requirement}: only lower bounds"


def test_both_lists_of_dependencies_agree() -> None:
    """ComfyUI-Manager reads requirements.txt, the registry reads pyproject.toml."""
    assert sorted(requirements()) == sorted(PROJECT["project"]["dependencies"])


def test_registry_metadata() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert {"PublisherId", "DisplayName", "Icon", "requires-comfyui"} <= set(comfy)
    for classifier in project["classifiers"]:
        assert classifier.startswith(("Operating System ::", "Environment :: GPU ::"))


def test_changelog_knows_this_version() -> None:
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_there_is_no_install_script() -> None:
    assert not [name for name in ("install.py", "prestartup_script.py", "setup.py") if (ROOT / name).exists()]


def test_wheel_holds_no_top_level_package(tmp_path: Path) -> None:
    """`pip install .` must not put anybody a package called `nodes` or `train` on the path."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md", "__init__.py"):
        if (ROOT / name).exists():
            shutil.copyfile(ROOT / name, source / name)
    (source / "README.md").touch()
    for room in ("nodes", "fe2e_core", "train", "tools"):
        (source / room).mkdir()
        (source / room / "__init__.py").touch()
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=120)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        outside = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert outside == []
