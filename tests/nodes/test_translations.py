"""Every node, input and output has its name and tooltip in each language, its inputs stand on its help pages, and
nothing is left over. Read from what the server sends to the interface.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import pytest

from tests.harness.inprocess import pack_module
from tools.comfyui import ROOT

LANGUAGES = ("zh", "ja")


@pytest.fixture(scope="module")
def definitions() -> dict[str, dict]:
    """Node id -> its entry in /object_info."""
    extension = asyncio.run(pack_module("nodes").comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in nodes}


def inputs(specification: dict, path: str = "") -> Iterator[str]:
    """Names of all inputs, those of dynamic combos with a dot: `size.detail`."""
    for group in ("required", "optional"):
        for name, (kind, *rest) in specification.get(group, {}).items():
            yield path + name
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for option in rest[0]["options"]:
                    yield from inputs(option["inputs"], f"{path}{name}.")


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_inputs_and_outputs_are_translated(language: str, definitions: dict[str, dict]) -> None:
    path = ROOT / "locales" / language / "nodeDefs.json"
    translated = json.loads(path.read_text(encoding="utf-8"))
    assert set(translated) == set(definitions), "translate a new node in locales/, and remove one that is gone"
    for node, definition in definitions.items():
        entry = translated[node]
        assert set(entry) == {"display_name", "description", "inputs", "outputs"}, node
        # The interface looks for an input's name with underscores in the place of dots.
        names = {name.replace(".", "_") for name in inputs(definition["input"])}
        assert set(entry["inputs"]) == names, node
        assert list(entry["outputs"]) == [str(index) for index in range(len(definition["output"]))], node
        for part in (*entry["inputs"].values(), *entry["outputs"].values()):
            assert set(part) == {"name", "tooltip"}, node


@pytest.mark.parametrize("language", LANGUAGES)
def test_menu_entries_are_translated(language: str, definitions: dict[str, dict]) -> None:
    """Those that ComfyUI does not translate itself; to change its words for others would be rude."""
    menu = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    ours = {part for definition in definitions.values() for part in definition["category"].split("/")}
    of_comfyui = {"3d", "model"}
    assert set(menu) == {"nodeCategories"}
    assert set(menu["nodeCategories"]) == ours - of_comfyui - {"FE2E"}


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_help_explains_every_input(language: str, definitions: dict[str, dict]) -> None:
    missing = []
    for node, definition in definitions.items():
        page = ROOT / "web" / "docs" / node / f"{language}.md"
        text = page.read_text(encoding="utf-8")
        names = {name.split(".")[-1] for name in inputs(definition["input"])}
        missing += [f"{node}: {name}" for name in sorted(names) if not re.search(rf"\b{name}\b", text, re.ASCII)]
    assert not missing


def test_no_page_of_a_node_that_is_gone(definitions: dict[str, dict]) -> None:
    pages = {path.name for path in (ROOT / "web" / "docs").iterdir() if path.name != "pictures"}
    assert pages == set(definitions)


def test_search_finds_each_node_by_other_words(definitions: dict[str, dict]) -> None:
    for node, definition in definitions.items():
        aliases = definition["search_aliases"]
        assert len(aliases) >= 2, node
        assert len(set(aliases)) == len(aliases), node
        assert any("fe2e" in alias for alias in aliases), node
        assert all(alias == alias.lower() for alias in aliases), node


def test_search_finds_what_others_call_it(definitions: dict[str, dict]) -> None:
    """The names of peers, and of what people want to do."""
    wanted = {
        "depth": "FE2EEstimate", "depth map": "FE2EEstimate", "normal map": "FE2EEstimate", "zoe": "FE2EEstimate",
        "midas": "FE2EEstimate", "marigold": "FE2EEstimate", "controlnet depth": "FE2ELogDepthDecode",
        "bae": "FE2ENormalColorize", "metric depth": "FE2EAnchorDepth", "fov": "FE2ECalibrate",
        "photo to mesh": "FE2EMesh", "point cloud": "FE2EPointCloud", "gaussian splat": "FE2ESplat",
        "flicker": "FE2EStabilizeVideo", "exr": "FE2ESaveEXR", "relight": "FE2EClay",
    }  # fmt: skip
    for word, node in wanted.items():
        assert word in definitions[node]["search_aliases"], (word, node)


def test_every_output_has_a_tooltip(definitions: dict[str, dict]) -> None:
    for node, definition in definitions.items():
        tooltips = definition.get("output_tooltips") or []
        assert len(tooltips) == len(definition["output"]), node
        assert all(tooltips), node


def test_the_readme_lists_every_node(definitions: dict[str, dict]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [table] = re.findall(r"^## Nodes\n(.*?)^## ", readme, re.M | re.S)
    listed = [name.strip() for row in re.findall(r"^\| ([^|]+) \|", table, re.M) for name in row.split(", ")]
    assert sorted(listed[1:]) == sorted(definition["display_name"] for definition in definitions.values())
