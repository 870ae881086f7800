"""The subgraph blueprints: sound files, offered by the server, found, placed and run in the real interface."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tools.comfyui import ROOT

FOLDER = ROOT / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
#: The ends of a subgraph are nodes with these ids.
INPUTS, OUTPUTS = -10, -20

# Wires a picture in and one node to each output, and gives the prompt that the interface would queue.
_WIRE = """async (sinks) => {
    const graph = window.app.graph, host = graph.nodes.find(node => node.isSubgraphNode?.());
    const add = (type, y) => {
        const node = window.LiteGraph.createNode(type);
        node.pos = [900, y];
        graph.add(node);
        return node;
    };
    const image = add("LoadImage", 0);
    image.widgets.find(widget => widget.name === "image").value = "example.png";
    image.connect(0, host, host.inputs.findIndex(input => input.name === "image"));
    host.outputs.forEach((output, index) => {
        const [type, input] = sinks[output.name], node = add(type, 300 * (index + 1));
        node.title = output.name;
        host.connect(index, node, node.inputs.findIndex(slot => slot.name === input));
    });
    return (await window.app.graphToPrompt()).output;
}"""
SINKS = {
    "depth": ("SaveImage", "images"),
    "normal": ("SaveImage", "images"),
    "geometry": ("FE2ESaveNPZ", "geometry"),
    "glb": ("SaveGLB", "mesh"),
    "mesh": ("SaveGLB", "mesh"),
    "camera_info": ("PreviewAny", "source"),
    "report": ("PreviewAny", "source"),
}


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_there_are_the_promised_blueprints() -> None:
    assert NAMES == ["Photo to ControlNet pair (FE2E)", "Photo to mesh (FE2E)"]


@pytest.mark.parametrize("name", NAMES)
def test_a_blueprint_is_one_subgraph_and_says_what_it_is(name: str) -> None:
    workflow = read(name)
    [host], [graph] = workflow["nodes"], workflow["definitions"]["subgraphs"]
    assert host["type"] == graph["id"]
    assert host["title"] == graph["name"] == name
    for side in ("inputs", "outputs"):
        outside, inside = ([(slot["name"], slot["type"]) for slot in node[side]] for node in (host, graph))
        assert outside == inside, side
    assert graph["category"] == "FE2E"
    assert workflow["extra"]["BlueprintDescription"] == graph["description"]
    assert {"fe2e"} < set(workflow["extra"]["BlueprintSearchAliases"])


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_with_both_of_their_ends(name: str) -> None:
    [graph] = read(name)["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link in graph["links"]:
        origin, target = link["origin_id"], link["target_id"]
        if origin == INPUTS:
            start = graph["inputs"][link["origin_slot"]]
            assert link["id"] in start["linkIds"]
        else:
            start = nodes[origin]["outputs"][link["origin_slot"]]
            assert link["id"] in start["links"]
        if target == OUTPUTS:
            end = graph["outputs"][link["target_slot"]]
            assert link["id"] in end["linkIds"]
        else:
            end = nodes[target]["inputs"][link["target_slot"]]
            assert link["id"] == end["link"]
        assert start["type"] == link["type"]
        assert end["type"] in {link["type"], "*"}
    assert all(slot["linkIds"] for slot in graph["inputs"] + graph["outputs"])


def test_the_server_offers_them(server) -> None:
    offered = {entry["name"]: (key, entry) for key, entry in server.get("/global_subgraphs").items()}
    for name in NAMES:
        key, entry = offered[name]
        assert entry["source"] == "custom_node"
        assert entry["info"]["node_pack"] == "custom_nodes.fe2e"
        assert json.loads(server.get(f"/global_subgraphs/{key}")["data"]) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_found_by_search_placed_and_run(name: str, frontend, server) -> None:
    """As a user does it: double click, type, Enter, click. Then every output is used and gives something."""
    page = frontend.page
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    page.evaluate("() => { window.app.graph.clear(); window.app.canvas.ds.reset(); }")
    page.mouse.dblclick(800, 450)
    page.locator("input[type=text]:visible, input[role=combobox]:visible").first.wait_for()
    page.keyboard.type(name)
    page.get_by_text(name, exact=True).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.app.graph.nodes.some(node => node.isSubgraphNode?.())")
    page.mouse.click(800, 450)
    page.wait_for_timeout(500)
    [host] = read(name)["nodes"]
    widgets = page.evaluate("() => window.app.graph.nodes[0].widgets.map(w => [w.name, w.value])")
    promoted = [slot["name"] for slot in host["inputs"] if "widget" in slot]
    assert widgets == [list(pair) for pair in zip(promoted, host["widgets_values"], strict=True)]

    prompt = page.evaluate(_WIRE, SINKS)
    [graph] = read(name)["definitions"]["subgraphs"]
    assert {node["type"] for node in graph["nodes"]} <= {node["class_type"] for node in prompt.values()}
    [estimate] = [node for node in prompt.values() if node["class_type"] == "FE2EEstimate"]
    estimate["inputs"] |= {"size": "longest side", "size.longest_side": 128}
    result = server.run(prompt)
    titles = {node["_meta"]["title"]: key for key, node in prompt.items()}
    for output in host["outputs"]:
        assert result.outputs.get(titles[output["name"]]), output["name"]
    for title in {"depth", "normal"} & set(titles):
        [path] = result.files(titles[title])
        assert np.asarray(Image.open(path)).std() > 1, f"{title} is one flat colour"
    if "glb" in titles:
        [path] = result.files(titles["glb"], "3d")
        assert path.read_bytes()[:4] == b"glTF"
