"""ComfyUI's frontend turns each saved workflow into exactly the prompt that is kept."""

from __future__ import annotations

import pytest

from tests.harness import workflows

#: Widgets that the interface adds by itself, some of them only once a preview has loaded; the server ignores them.
INTERFACE_ONLY = {"Preview3D": {"image"}, "LoadVideo": {"video-preview"}}


def what_the_server_reads(prompt: dict) -> dict:
    """The prompt without the interface's own widgets: whether those are there is a question of timing."""
    return {
        key: {
            **node,
            "inputs": {
                name: value
                for name, value in node["inputs"].items()
                if name not in INTERFACE_ONLY.get(node["class_type"], set())
            },
        }
        for key, node in prompt.items()
    }


@pytest.mark.parametrize("name", workflows.names())
def test_frontend_makes_the_kept_prompt(name: str, frontend) -> None:
    prompt = what_the_server_reads(frontend.to_prompt(workflows.read(name)))
    if workflows.UPDATE:
        workflows.write_api(name, prompt)
    assert prompt == workflows.read_api(name), (
        "the workflow and the nodes have drifted apart; look at the difference, and if it is wanted run "
        "FE2E_UPDATE_WORKFLOWS=1 make test-workflows"
    )


@pytest.mark.parametrize("name", workflows.names())
def test_server_accepts_every_widget_value(name: str, server) -> None:
    """Every input of the kept prompt exists in the server's node definitions, and no required one is missing.

    Values are checked by the run itself; this names the node and the input when a schema changes.
    """
    info = server.object_info()
    for node_id, node in workflows.read_api(name).items():
        assert node["class_type"] in info, node["class_type"]
        inputs = info[node["class_type"]]["input"]
        known = {**inputs.get("required", {}), **inputs.get("optional", {})}
        given = {key.split(".")[0] for key in node["inputs"]}
        assert given <= set(known), (node_id, node["class_type"])
        assert set(inputs.get("required", {})) <= given, (node_id, node["class_type"])
