"""What the registry and its command line tool (comfy-cli) make of the project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.harness.archive import pack_working_tree, source_files

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMFY = PROJECT["tool"]["comfy"]
REPOSITORY = PROJECT["project"]["urls"]["Repository"]


def test_comfy_cli_reads_every_field_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """Its parser prints a warning and drops what it does not like; this is what the registry is sent."""
    from comfy_cli.registry.config_parser import extract_node_configuration

    read = extract_node_configuration(str(ROOT / "pyproject.toml"))
    assert capfd.readouterr() == ("", "")
    project, comfy = read.project, read.tool_comfy
    assert (project.name, project.version) == (PROJECT["project"]["name"], PROJECT["project"]["version"])
    assert project.description
    assert project.license.file == "LICENSE"
    assert project.requires_python == PROJECT["project"]["requires-python"]
    assert project.dependencies == PROJECT["project"]["dependencies"]
    assert project.supported_os == ["OS Independent"]
    assert "GPU :: NVIDIA CUDA" in project.supported_accelerators
    assert project.supported_comfyui_version == COMFY["requires-comfyui"]
    assert project.urls.repository == REPOSITORY
    assert all((project.urls.homepage, project.urls.documentation, project.urls.issues))
    assert comfy.publisher_id == COMFY["PublisherId"]
    assert comfy.display_name
    assert comfy.icon.endswith(".png")
    assert comfy.banner_url.endswith(".png")


def test_comfy_cli_validates_the_project(tmp_path: Path) -> None:
    """`comfy node validate`: the checks of publishing, without publishing."""
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1"}

    def comfy(*arguments: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("comfy"), "--skip-prompt", *arguments],
            env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    comfy("tracking", "disable")
    said = comfy("node", "validate")
    assert "All validation checks passed" in said
    assert not re.search("warning|error", said, re.IGNORECASE), said


def test_one_repository_everywhere() -> None:
    """The owner is a placeholder until somebody publishes; whoever replaces it must not miss a place."""
    owner, name = REPOSITORY.removeprefix("https://github.com/").split("/")
    assert owner == COMFY["PublisherId"]
    raw = f"https://raw.githubusercontent.com/{owner}/{name}/main/"
    for key in ("Icon", "Banner"):
        assert COMFY[key].startswith(raw)
        assert (ROOT / COMFY[key].removeprefix(raw)).is_file()
    for key, url in PROJECT["project"]["urls"].items():
        assert url.startswith(REPOSITORY), key
    pattern = re.compile(r"github(?:usercontent)?\.com/([\w.-]+)/([\w.-]*fe2e-nodes[\w.-]*)")
    for path in source_files():
        if path.endswith((".md", ".toml", ".yml", ".yaml", ".py", ".json", ".txt")):
            for found in pattern.finditer((ROOT / path).read_text(encoding="utf-8")):
                assert found.groups() in {(owner, name), (owner, f"{name}.git")}, (path, found.group())


@pytest.mark.parametrize(("name", "ratio"), [("icon", 1), ("banner", 21 / 9)])
def test_pictures_have_the_registrys_shapes(name: str, ratio: float) -> None:
    """Icon: square, at most 400 pixels. Banner: 21:9. The SVG is the source and has the same shape."""
    drawing = ElementTree.parse(ROOT / "assets" / f"{name}.svg").getroot()
    *_, width, height = (float(number) for number in drawing.get("viewBox").split())
    with Image.open(ROOT / "assets" / f"{name}.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (width, height)
        assert width / height == pytest.approx(ratio)
        assert name != "icon" or width <= 400
        assert picture.convert("L").resize((16, 16)).getextrema()[1] > 100, "the picture is empty"
    assert (ROOT / "assets" / f"{name}.png").stat().st_size < 300_000


def test_the_published_archive_holds_what_users_need(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Made by the code that `comfy node publish` uses, from the files in git and .comfyignore."""
    files = source_files()
    path = pack_working_tree(tmp_path)
    assert "Warning" not in capfd.readouterr().out
    with zipfile.ZipFile(path) as archive:
        packed = set(archive.namelist())
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= packed
    assert "models/fe2e-nano.safetensors" in packed
    for room in ("nodes", "fe2e_core", "train", "web", "workflows", "subgraphs", "locales", "models"):
        ours = {path for path in files if path.startswith(f"{room}/")}
        assert ours, room
        assert ours <= packed, f"missing from the archive: {sorted(ours - packed)}"
    tops = {path.split("/")[0] for path in packed}
    assert not tops & {".ci", ".github", ".gitignore", "assets", "benchmarks", "tests", "tools", "Makefile"}
    assert not [path for path in packed if path.startswith("docs/") and not path.endswith(".md")]


def test_sources_fit_the_windows_code_page() -> None:
    """comfy-test refuses others: some tools on Windows still read sources in it."""
    for path in source_files():
        if path.endswith(".py") and path.split("/")[0] in {"__init__.py", "nodes", "fe2e_core", "train"}:
            (ROOT / path).read_text(encoding="utf-8").encode("cp1252")
