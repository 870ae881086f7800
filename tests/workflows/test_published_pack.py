"""The pack as strangers get it: unpacked from the published archive into a folder of any name, beside a pack that takes
common module names, in a ComfyUI without any model. Everything that the interface finds by itself is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.harness import workflows
from tests.harness.archive import pack_working_tree, unpack
from tests.harness.pictures import write_example
from tools.comfyui import ROOT
from tools.server import ComfyServer

FOLDER = "FE2E-nodes_main(1)"  # not ours, not lower case, no Python name
NEIGHBOUR = """
import importlib, os, sys
sys.path.insert(0, os.path.dirname(__file__))
for name in ("train", "tests", "tools", "benchmarks", "fe2e_core"):
    sys.modules.pop(name, None)
    assert importlib.import_module(name).WHOSE == "the neighbour's"
NODE_CLASS_MAPPINGS = {}
"""
# Names that are ComfyUI's own: it has imported them already, so the neighbour's files only wait on sys.path.
WAITING = ("nodes", "utils", "app", "comfy_extras")
TAKEN = ("train", "tests", "tools", "benchmarks", "fe2e_core")

_MISSING = """() => {
    const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s;
    return (stores.get("missingModel").missingModelCandidates ?? []).map(({name, url, directory, isMissing}) =>
        ({name, url, directory, isMissing}));
}"""
_SHOW_NODE = """() => {
    const {app, LiteGraph} = window;
    app.graph.clear();
    const node = LiteGraph.createNode("FE2EEstimate");
    node.pos = [300, 200];
    app.graph.add(node);
    app.canvas.selectNode(node);
    return {title: node.title, inputs: node.inputs.map(input => input.localized_name ?? input.label),
            outputs: node.outputs.map(output => output.localized_name)};
}"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("published")
    server = ComfyServer(folder / "server", pack=None)
    custom = server.base / "custom_nodes"
    unpack(pack_working_tree(folder), custom / FOLDER)
    neighbour = custom / "0-neighbour"
    neighbour.mkdir()
    (neighbour / "__init__.py").write_text(NEIGHBOUR)
    for name in TAKEN:
        (neighbour / f"{name}.py").write_text('WHOSE = "the neighbour\'s"\n')
    for name in WAITING:
        (neighbour / f"{name}.py").write_text('raise ImportError("this is the neighbour\'s file")\n')
    write_example(server.input)
    with server:
        yield server


@pytest.fixture(scope="module")
def page(published: ComfyServer, browser) -> Iterator:
    from tests.harness.browser import open_frontend

    with open_frontend(published.url, browser) as frontend:
        yield frontend.page


def ours(name: str) -> dict:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def test_both_packs_start(published: ComfyServer) -> None:
    assert "IMPORT FAILED" not in published.log
    assert "Traceback" not in published.log
    assert "0-neighbour" in published.log
    info = published.object_info()
    nodes = {key: node for key, node in info.items() if key.startswith("FE2E")}
    assert len(nodes) > 20
    assert {node["python_module"] for node in nodes.values()} == {f"custom_nodes.{FOLDER}"}


def test_the_quick_start_runs_beside_the_neighbour(published: ComfyServer) -> None:
    """Modules that the nodes import while they run are theirs, not the neighbour's."""
    prompt = workflows.read_api("quick_start")
    [estimate] = [key for key, node in prompt.items() if node["class_type"] == "FE2EEstimate"]
    prompt["clay"] = {
        "class_type": "FE2EClay",
        "inputs": {
            "geometry": [estimate, 0], "light_x": 0.3, "light_y": 0.3, "light_distance": 1.0, "ambient": 0.2, "gloss": 0.0,
        },
    }  # fmt: skip
    prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": ["clay", 0], "filename_prefix": "clay"}}
    assert published.run(prompt).files("save")


def test_the_interface_is_served_all_it_asks_for(published: ComfyServer) -> None:
    served = published.get("/i18n")
    for language in ("zh", "ja"):
        assert served[language]["nodeDefs"] == ours(f"locales/{language}/nodeDefs.json")
        assert served[language]["nodeCategories"] == ours(f"locales/{language}/main.json")["nodeCategories"]
    assert sorted(published.get("/workflow_templates")[FOLDER]) == workflows.names()
    blueprints = [b for b in published.get("/global_subgraphs").values() if b["source"] == "custom_node"]
    assert {b["info"]["node_pack"] for b in blueprints} == {f"custom_nodes.{FOLDER}"}
    docs = f"/extensions/{quote(FOLDER)}/docs"
    for path in [*(ROOT / "web" / "docs").rglob("*.md"), *(ROOT / "web" / "docs").rglob("*.jpg")]:
        name = path.relative_to(ROOT / "web" / "docs").as_posix()
        assert published.get_bytes(f"{docs}/{name}") == path.read_bytes()
    assert isinstance(published.get("/node_replacements"), dict)


def test_the_interface_offers_the_downloads(page) -> None:
    """The released model's files are missing here: the interface knows each, where to get it and where to put it."""
    page.keyboard.press("Escape")
    workflow = workflows.read("released_model")
    page.evaluate("async (workflow) => { await window.app.loadGraphData(workflow, true, true, null); }", workflow)
    page.wait_for_function(f"() => ({_MISSING})().length > 0")
    [loader] = [node for node in workflow["nodes"] if node["type"] == "FE2ELoadModel"]
    offered = sorted(page.evaluate(_MISSING), key=lambda model: model["name"])
    expected = [{**model, "isMissing": True} for model in loader["properties"]["models"]]
    assert offered == sorted(expected, key=lambda model: model["name"])
    assert [model["name"] for model in offered] == [
        "LDRN.safetensors", "step1x-edit-i1258.safetensors", "vae.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_the_interface_speaks_the_language(language: str, page, tmp_path: Path) -> None:
    """A node, its slots and its help page with the picture, as the user sees them after changing the language."""
    page.evaluate("language => window.app.extensionManager.setting.set('Comfy.Locale', language)", language)
    page.reload(wait_until="load")
    page.wait_for_function("() => window.app?.graph && 'FE2EEstimate' in (window.LiteGraph?.registered_node_types ?? {})")
    page.wait_for_timeout(3000)  # it restores its last workflow
    page.keyboard.press("Escape")
    entry = ours(f"locales/{language}/nodeDefs.json")["FE2EEstimate"]
    shown = page.evaluate(_SHOW_NODE)
    assert shown["title"] == entry["display_name"]
    assert shown["outputs"] == [part["name"] for part in entry["outputs"].values()]
    assert set(shown["inputs"]) <= {part["name"] for part in entry["inputs"].values()}
    page.locator("[data-testid=info-button]").first.click()
    [_, _, sentence, *_] = (ROOT / "web" / "docs" / "FE2EEstimate" / f"{language}.md").read_text().split("\n")
    page.get_by_text(sentence).first.wait_for()
    page.wait_for_function("() => document.querySelector('img[src*=\"docs/pictures/\"]')?.naturalWidth > 0")
    page.screenshot(path=str(tmp_path / f"{language}.png"))
