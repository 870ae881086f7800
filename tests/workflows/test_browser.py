"""The templates as a person meets them: found in the template browser, opened and run by clicking.

FE2E_UPDATE_SCREENSHOTS=1 keeps what was seen in docs/screenshots/. The large models are stand-ins with random
weights (tests/harness/tiny.py): in the pictures of the templates that need those, the results are noise.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness import workflows
from tests.harness.pictures import drawn_scene, write_clip, write_example
from tools.comfyui import ROOT
from tools.server import ComfyServer

SCREENSHOTS = ROOT / "docs" / "screenshots"
UPDATE = os.environ.get("FE2E_UPDATE_SCREENSHOTS") == "1"
SCREENSHOT_SIZE = (1600, 900)
SCREENSHOT_BYTES = 150_000
#: The name that the server of the tests has the pack under, which is the heading in the template browser.
PACK = "fe2e"
#: Turned down for time, in the page itself: no node and no link is changed.
SMALL = [("FE2EEstimate", "size", "longest side"), ("FE2EEstimate", "size.longest_side", 256)]
FASTER = {
    "controlnet_depth_normal": [("KSampler", "steps", 2), ("ImageScaleToTotalPixels", "megapixels", 0.06), *SMALL],
    # Software rendering of a few thousand triangles is quick, that of every pixel is not.
    "photo_to_mesh": [("FE2EMesh", "stride", 4)],
    "released_model": SMALL,
}
#: Templates whose models are stand-ins here: their results are noise, and no picture to advertise with.
STAND_INS = {"controlnet_depth_normal", "released_model"}
TITLE = 30
#: Widgets without a value of their own: the interface adds them when a preview has something to show.
SHOWN_ONLY = {"Preview3D", "PreviewAny", "LoadVideo", "MarkdownNote"}


@pytest.fixture(scope="module", autouse=True)
def a_scene_for_the_embedded_model(server: ComfyServer) -> Iterator[None]:
    """In the place of the portrait: the screenshots should show what the nodes do with what the model knows."""
    write_example(server.input, source=drawn_scene)
    write_clip(server.input, source=drawn_scene)
    yield
    write_example(server.input)
    write_clip(server.input)


def keep(picture: Image.Image, name: str) -> Path:
    """Writes docs/screenshots/<name>.jpg, as good as fits the size limit."""
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.jpg"
    temporary = path.with_suffix(".tmp")
    picture = picture.resize(SCREENSHOT_SIZE, Image.Resampling.LANCZOS)
    for quality in (88, 80, 70, 60):
        picture.save(temporary, "JPEG", quality=quality, optimize=True)
        if temporary.stat().st_size < SCREENSHOT_BYTES:
            break
    os.replace(temporary, path)
    return path


def keep_thumbnail(picture: Image.Image, nodes: list[dict], name: str) -> None:
    """Writes workflows/<name>.jpg, which the template browser shows: the graph without the page around it."""
    margin, title = 12, TITLE * nodes[0]["seen"][2] / nodes[0]["width"]
    left, top = (min(node["seen"][axis] for node in nodes) - margin for axis in (0, 1))
    right, bottom = (max(node["seen"][axis] + node["seen"][axis + 2] for node in nodes) + margin for axis in (0, 1))
    picture = picture.crop((round(left), round(top - title), round(right), round(bottom)))
    path = workflows.WORKFLOWS / f"{name}.jpg"
    temporary = path.with_suffix(".tmp")
    picture.resize((900, round(900 * picture.height / picture.width)), Image.Resampling.LANCZOS).save(
        temporary, "JPEG", quality=85, optimize=True
    )
    os.replace(temporary, path)


def crop(picture: Image.Image, node: dict) -> np.ndarray:
    """(H,W,3) float in [0,255]: what the page shows inside one node."""
    x, y, width, height = node["seen"]
    return np.asarray(picture.crop((round(x), round(y), round(x + width), round(y + height))), dtype=np.float32)


def test_every_template_is_offered_with_a_thumbnail(frontend) -> None:
    offered = frontend.open_templates(PACK, "quick_start")
    assert set(offered) == set(workflows.names())
    assert all(width >= 256 for width in offered.values()), offered
    if UPDATE:
        keep(frontend.look(), "templates")
    frontend.page.keyboard.press("Escape")


def test_a_missing_node_and_a_missing_model_are_complained_about(frontend) -> None:
    """Proof that the tests below would notice: the same look at a workflow that lacks both."""
    workflow = workflows.read("quick_start")
    for node in workflow["nodes"]:
        if node["type"] == "FE2EEstimate":
            node["type"] = "NoSuchNode"
        if node["type"] == "FE2ELoadModel":
            node["widgets_values"][1] = "no-such-model.safetensors"
    frontend.page.evaluate("workflow => window.app.loadGraphData(workflow, true, true, null)", workflow)
    frontend.page.wait_for_timeout(2000)
    assert frontend.complaints()
    assert {node["type"] for node in frontend.nodes() if node["wrong"]} >= {"NoSuchNode"}
    frontend.page.keyboard.press("Escape")


@pytest.mark.parametrize("name", workflows.names())
def test_template_opens_and_runs_by_clicking(name: str, frontend, server: ComfyServer) -> None:
    frontend.open_template(PACK, name)
    frontend.fit()
    frontend.page.wait_for_timeout(1500)

    assert frontend.complaints() == []
    nodes = frontend.nodes()
    assert [node["type"] for node in nodes if node["wrong"]] == []
    assert {node["id"] for node in nodes} == {str(node["id"]) for node in workflows.read(name)["nodes"]}
    assert_widgets_arrived(name, frontend)
    assert_nothing_overlaps(nodes)
    for node in nodes:
        assert node["height"] >= node["needs"][1] - 1, f"{node['title']} is too low for its widgets"
    loaded = frontend.look()
    if UPDATE:
        keep(loaded, name)

    for node_type, widget, value in FASTER.get(name, []):
        frontend.set_widget(node_type, widget, value)
    server.wait(frontend.press_run(), timeout=900)
    shown = wait_for_pictures(frontend)
    frontend.wait_for_messages()
    frontend.fit()
    turn_the_mesh(frontend)
    assert frontend.complaints() == []
    assert_nothing_overlaps(frontend.nodes())
    after = frontend.look()
    if UPDATE:
        keep(after, f"{name}_run")
        keep_thumbnail(loaded if name in STAND_INS else after, frontend.nodes(), name)
    for node in shown:
        before_, after_ = crop(loaded, node), crop(after, node)
        changed = np.abs(after_ - before_).max(axis=-1) > 12
        assert changed.mean() > 0.2, f"{node['title']}: no picture appeared in the node"
        assert after_[changed].std() > 5, f"{node['title']}: one flat colour"


def turn_the_mesh(frontend) -> None:
    """Drags in the viewer, where there is one: what it shows is solid, and no picture of itself."""
    for node in frontend.nodes():
        if node["type"] != "Preview3D":
            continue
        before = crop(frontend.look(), node)
        x, y, width, height = node["seen"]
        mouse = frontend.page.mouse
        mouse.move(x + 0.5 * width, y + 0.6 * height)
        mouse.down()
        mouse.move(x + 0.57 * width, y + 0.63 * height, steps=8)
        mouse.up()
        mouse.wheel(0, 600)
        frontend.page.wait_for_timeout(3000)
        changed = np.abs(crop(frontend.look(), node) - before).max(axis=-1) > 24
        assert changed.mean() > 0.1, "the viewer did not turn the mesh"


def assert_widgets_arrived(name: str, frontend) -> None:
    """Every value of the file sits in its widget: none was lost, and none slipped into a neighbour's place."""
    kept = frontend.page.evaluate("() => window.app.graph.serialize().nodes.map(n => [n.id, n.widgets_values])")
    kept = {str(key): value for key, value in kept}
    for node in workflows.read(name)["nodes"]:
        if node["type"] not in SHOWN_ONLY:
            wanted, found = list(node.get("widgets_values") or []), list(kept[str(node["id"])] or [])
            # An older ComfyUI's own nodes may lack a widget that has been appended since.
            expected = wanted if node["type"].startswith("FE2E") else wanted[: len(found)]
            assert found == expected, node["type"]


def assert_nothing_overlaps(nodes: list[dict], title: float = TITLE) -> None:
    """No node covers another. title: the height above a node's place that its title takes."""
    for one, other in itertools.combinations(nodes, 2):
        beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
        above = one["y"] + one["height"] <= other["y"] - title or other["y"] + other["height"] <= one["y"] - title
        assert beside or above, f"{one['title']} and {other['title']} overlap"


def wait_for_pictures(frontend, seconds: int = 240) -> list[dict]:
    """The nodes that save or preview pictures, once each of them shows one."""
    for _ in range(2 * seconds):
        shown = [node for node in frontend.nodes() if node["type"] in ("SaveImage", "PreviewImage")]
        if shown and all(node["pictures"] and min(node["pictures"][0]) > 0 for node in shown):
            return shown
        frontend.page.wait_for_timeout(500)
    pytest.fail(f"no picture after {seconds} s in: {[n['title'] for n in shown if not n['pictures']]}")
