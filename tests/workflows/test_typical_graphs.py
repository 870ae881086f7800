"""The typical graph at the end of each help page: its nodes exist under those names and fit together in this order in the real
interface. The page's picture shows the node there, with the one before and the one after it.

FE2E_UPDATE_SCREENSHOTS=1 draws the pictures anew, into web/docs/pictures/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools.comfyui import ROOT
from tools.server import ComfyServer

DOCS = ROOT / "web" / "docs"
UPDATE = os.environ.get("FE2E_UPDATE_SCREENSHOTS") == "1"
NODES = sorted(path.parent.name for path in DOCS.glob("*/en.md"))
WIDTH, MARGIN, TITLE = 1000, 10, 30
#: What stands before a chain that does not begin with it: type of an input -> the node it comes from.
SOURCES = {"FE2E_MODEL": "FE2ELoadModel", "IMAGE": "LoadImage"}

# Puts a chain of nodes in a row, the sources in a column before it, and wires all. `chain`: node types. `needs`:
# node type -> its inputs that may not stay empty. Returns the pairs of the chain that do not fit.
_BUILD = """([chain, needs, sources]) => {
    const {app, LiteGraph} = window, graph = app.graph;
    graph.clear();
    // Pictures that ran under the same ids would come back.
    graph.last_node_id = Date.now() % 1e9;
    const add = type => {
        const node = LiteGraph.createNode(type);
        graph.add(node);
        return node;
    };
    const exact = (output, input) => String(input.type).split(",").includes(output.type) || input.type === "*";
    const connect = (from, to) => {
        for (const [slot, output] of from.outputs.entries())
            for (const [place, input] of to.inputs.entries())
                if (input.link == null && exact(output, input)) return from.connect(slot, to, place);
        return null;
    };
    const nodes = chain.map(add), misfits = [], before = {};
    for (let i = 1; i < nodes.length; i++)
        if (!connect(nodes[i - 1], nodes[i])) misfits.push([chain[i - 1], chain[i]]);
    for (const node of nodes)
        for (const [place, input] of node.inputs.entries()) {
            const source = sources[input.type];
            if (input.link != null || !source || !(needs[node.type] ?? []).includes(input.name)) continue;
            const from = nodes.find(other => other.type === source) ?? (before[source] ??= add(source));
            from.connect(from.outputs.findIndex(output => output.type === input.type), node, place);
        }
    let x = 0, y = 0;
    for (const node of Object.values(before)) {
        node.setSize([Math.max(270, node.size[0]), node.type === "LoadImage" ? 310 : node.computeSize()[1]]);
        node.pos = [0, y];
        y += node.size[1] + 50;
        x = Math.max(x, node.size[0] + 60);
    }
    for (const node of nodes) {
        node.setSize([Math.max(220, node.computeSize()[0]), Math.max(node.computeSize()[1], node.size[1])]);
        node.pos = [x, 0];
        x += node.size[0] + 60;
    }
    return misfits;
}"""


def chain(node: str) -> list[str]:
    """Display names along the typical graph of a node's English page."""
    [line] = re.findall(r"^Typical graph: (.+?)(?: \(template \*\w+\*\))?\.$", (DOCS / node / "en.md").read_text(), re.M)
    return [name.strip("* ") for name in line.split("→")]


def template(node: str) -> str | None:
    """Name of the template that a page's typical graph is said to be in."""
    found = re.search(r"^Typical graph: .*\(template \*(\w+)\*\)\.$", (DOCS / node / "en.md").read_text(), re.M)
    return found and found[1]


@pytest.fixture(scope="module")
def known(server: ComfyServer) -> dict[str, Any]:
    """Node id -> its entry in /object_info."""
    return server.object_info()


def node_types(names: list[str], known: dict[str, Any]) -> list[str]:
    """Ids of the nodes with these display names."""
    by_name: dict[str, str] = {}
    for key, entry in known.items():
        if not entry.get("deprecated"):
            by_name.setdefault(entry["display_name"] or key, key)
    return [by_name[name] for name in names]


@pytest.mark.parametrize("node", NODES)
def test_the_typical_graph_can_be_built(node: str, frontend, known: dict[str, Any]) -> None:
    types = node_types(chain(node), known)
    assert node in types
    needs = {key: list(known[key]["input"].get("required", {})) for key in types}
    assert frontend.page.evaluate(_BUILD, [types, needs, SOURCES]) == []
    picture = DOCS / "pictures" / f"graph_{node}.jpg"
    if UPDATE:
        frontend.page.keyboard.press("Escape")
        place = types.index(node)
        beside = types[max(0, place - 1) : place + 2]
        frontend.page.evaluate(_BUILD, [beside, {node: needs[node]}, SOURCES])
        draw(frontend, picture)
    assert picture.is_file()
    assert f"](pictures/{picture.name})" in (DOCS / node / "en.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("node", [node for node in NODES if template(node)])
def test_the_template_shows_it(node: str, known: dict[str, Any]) -> None:
    """A page that names a template means one that has all nodes of its graph."""
    from tests.harness import workflows

    there = {entry["type"] for entry in workflows.read(template(node))["nodes"]}
    assert set(node_types(chain(node), known)) <= there


def draw(frontend, path: Path) -> None:
    """Keeps what the graph looks like, cut to its nodes."""
    frontend.fit()
    frontend.page.wait_for_timeout(1500)
    nodes = frontend.nodes()
    title = TITLE * nodes[0]["seen"][2] / nodes[0]["width"]
    left, top = (min(node["seen"][axis] for node in nodes) - MARGIN for axis in (0, 1))
    right, bottom = (max(node["seen"][axis] + node["seen"][axis + 2] for node in nodes) + MARGIN for axis in (0, 1))
    # The name of the pack floats above a title.
    seen = frontend.look().crop((round(left), round(top - title - 18), round(right), round(bottom)))
    if seen.width > WIDTH:
        seen = seen.resize((WIDTH, round(seen.height * WIDTH / seen.width)), Image.Resampling.LANCZOS)
    temporary = path.with_suffix(".tmp")
    seen.save(temporary, "JPEG", quality=85, optimize=True)
    os.replace(temporary, path)
