"""A node that gets another id: old workflows and prompts still run, on every ComfyUI."""

from __future__ import annotations

import asyncio
import copy
from types import SimpleNamespace

import pytest
import torch

from tests.harness.inprocess import pack_module, run_node


@pytest.fixture(scope="module")
def nodes() -> list[type]:
    extension = asyncio.run(pack_module("nodes").comfy_entrypoint())
    return asyncio.run(extension.get_node_list())


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch):
    """ComfyUI's own replacement manager where the server would have it."""
    import server
    from app.node_replace_manager import NodeReplaceManager

    made = NodeReplaceManager()
    monkeypatch.setattr(
        server.PromptServer, "instance", SimpleNamespace(node_replace_manager=made), raising=False
    )
    return made


def keep(nodes: list[type], renames: dict[str, str]) -> list[type]:
    return asyncio.run(pack_module("nodes.renames").keep_old_ids(nodes, renames))


PROMPT = {
    "1": {"class_type": "FE2ECalibrate", "inputs": {}, "_meta": {"title": ""}},
    "2": {
        "class_type": "OldRefine",
        "inputs": {"geometry": ["1", 0], "reach": 0.2, "strength": 0.5, "use_confidence": False},
        "_meta": {"title": "mine"},
    },
    "3": {"class_type": "FE2ESaveNPZ", "inputs": {"geometry": ["2", 0]}, "_meta": {"title": ""}},
}


def test_comfyui_replaces_the_id_in_a_prompt(nodes, manager, monkeypatch) -> None:
    import nodes as comfyui_nodes

    monkeypatch.setitem(comfyui_nodes.NODE_CLASS_MAPPINGS, "FE2ERefine", object())
    assert keep(nodes, {"OldRefine": "FE2ERefine"}) == []
    prompt = copy.deepcopy(PROMPT)
    manager.apply_replacements(prompt)
    expected = copy.deepcopy(PROMPT)
    expected["2"]["class_type"] = "FE2ERefine"
    assert prompt == expected


def test_what_the_interface_is_told(nodes, manager) -> None:
    keep(nodes, {"OldRefine": "FE2ERefine"})
    [entry] = manager.as_dict()["OldRefine"]
    assert entry["new_node_id"] == "FE2ERefine"
    assert entry["old_widget_ids"] == ["reach", "strength", "use_confidence"], (
        "in the order of widgets_values"
    )
    assert entry["output_mapping"] == [{"new_idx": 0, "old_idx": 0}]


@pytest.mark.parametrize("new", ["FE2ELoadModel", "FE2EEstimate", "FE2EAnchorDepth", "FE2ENormalColorize"])
def test_a_node_whose_inputs_may_be_absent_stays_under_its_old_id(nodes, manager, new: str) -> None:
    """ComfyUI's replacement fails at a prompt without a mapped input; a deprecated twin does not."""
    [twin] = keep(nodes, {"OldNode": new})
    assert manager.as_dict() == {}
    [original] = [node for node in nodes if node.GET_SCHEMA().node_id == new]
    ours, theirs = twin.GET_NODE_INFO_V1(), original.GET_NODE_INFO_V1()
    assert (ours["name"], ours["deprecated"], theirs["deprecated"]) == ("OldNode", True, False)
    assert ours["input"] == theirs["input"]
    assert ours["output"] == theirs["output"]


def test_without_replacements_in_comfyui_every_old_id_stays(nodes, monkeypatch) -> None:
    """As before ComfyUI had them: neither the class nor the registry is there."""
    import comfy_api.latest
    from comfy_api.latest import io

    monkeypatch.delattr(io, "NodeReplace")
    monkeypatch.setattr(comfy_api.latest, "ComfyAPI", SimpleNamespace)
    [twin] = keep(nodes, {"OldRefine": "FE2ERefine"})
    assert twin.GET_SCHEMA().node_id == "OldRefine"


def test_the_twin_gives_the_same_result(nodes, monkeypatch) -> None:
    from comfy_api.latest import io

    monkeypatch.delattr(io, "NodeReplace")
    [twin] = keep(nodes, {"OldHistogram": "FE2EHistogram"})
    [original] = [node for node in nodes if node.GET_SCHEMA().node_id == "FE2EHistogram"]
    depth = torch.linspace(-1, 1, 24).reshape(1, 4, 6)
    geometry = {
        "log_depth": depth,
        "normal": torch.tensor([0.0, 0.0, -1.0]).expand(1, 4, 6, 3),
        "mask": torch.ones(1, 4, 6, dtype=torch.bool),
        "image": torch.zeros(1, 4, 6, 3),
    }
    ours, theirs = (run_node(node, geometry=geometry) for node in (twin, original))
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("renames", [{"FE2ERefine": "FE2EMesh"}, {"OldRefine": "FE2ENoSuchNode"}])
def test_a_wrong_entry_is_refused(nodes, manager, renames: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="renames"):
        keep(nodes, renames)
    assert manager.as_dict() == {}


def test_the_entries_of_this_version_are_right(nodes, manager) -> None:
    keep(nodes, dict(pack_module("nodes.renames").RENAMES))
