"""What ComfyUI expects of example workflows, read from the files."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.harness import workflows
from tools.comfyui import ROOT


def test_there_are_the_three_promised_workflows() -> None:
    assert {"quick_start", "released_model", "controlnet_depth_normal"} <= set(workflows.names())


def test_each_has_a_kept_api_format_and_no_other_is_kept() -> None:
    kept = {path.stem for path in workflows.API_WORKFLOWS.glob("*.json")}
    assert kept == set(workflows.names())


@pytest.mark.parametrize("name", workflows.names())
def test_it_is_listed_and_shown(name: str) -> None:
    """In the README, and on the page of screenshots as it was opened and run."""
    assert f"| `{name}` |" in (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "screenshots.md").read_text(encoding="utf-8")
    for kind in ("", "_run"):
        assert f"](screenshots/{name}{kind}.jpg)" in page
        with Image.open(ROOT / "docs" / "screenshots" / f"{name}{kind}.jpg") as picture:
            assert picture.size == (1600, 900)


@pytest.mark.parametrize("name", workflows.names())
def test_thumbnail(name: str) -> None:
    """ComfyUI's template browser shows `<name>.jpg`, not too large for a list of them."""
    path = workflows.WORKFLOWS / f"{name}.jpg"
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert 256 <= image.width <= 1024
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("name", workflows.names())
def test_downloads_are_what_the_loader_names(name: str) -> None:
    """The frontend offers a download only when the name is the widget's value and the host is one it trusts.
    """
    for node in workflows.read(name)["nodes"]:
        for model in node.get("properties", {}).get("models", []):
            assert model["name"] in node["widgets_values"], node["type"]
            assert model["url"].startswith(("https://huggingface.co/", "https://civitai.com/"))
            assert model["url"].endswith("/" + model["name"])
            assert model["directory"]


@pytest.mark.parametrize("name", workflows.names())
def test_every_loader_of_a_large_file_offers_it(name: str) -> None:
    embedded = "fe2e-nano.safetensors"
    for node in workflows.read(name)["nodes"]:
        values = node.get("widgets_values") or []
        files = [v for v in values if str(v).endswith(".safetensors") and v != embedded]
        offered = [model["name"] for model in node.get("properties", {}).get("models", [])]
        assert sorted(files) == sorted(offered), node["type"]


@pytest.mark.parametrize("name", workflows.names())
def test_random_seeds_are_fixed(name: str) -> None:
    """Who runs a template twice should see the same picture twice."""
    for node in workflows.read(name)["nodes"]:
        values = {str(value) for value in node.get("widgets_values") or []}
        assert not {"randomize", "increment", "decrement"} & values
