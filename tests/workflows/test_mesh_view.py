"""Photo to mesh in the real interface: core's Preview 3D draws the mesh, seen in screenshots of its canvas."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from tests.harness import workflows

# Runs what is on the page and gives the id of the prompt, as the button Run does.
_QUEUE = """async () => {
    const answers = [], post = window.app.api.queuePrompt.bind(window.app.api);
    window.app.api.queuePrompt = async (...given) => { const a = await post(...given); answers.push(a); return a; };
    try { await window.app.queuePrompt(0); } finally { window.app.api.queuePrompt = post; }
    return answers[0]?.prompt_id;
}"""
# Brings the viewer into sight; its canvas is the one in the widget of the node, not that of the graph.
_SHOW = """async () => {
    const node = window.app.graph.nodes.find(node => node.type === "Preview3D"), ds = window.app.canvas.ds;
    ds.scale = 1; ds.offset[0] = 250 - node.pos[0]; ds.offset[1] = 120 - node.pos[1];
    window.app.canvas.setDirty(true, true);
    await new Promise(resolve => setTimeout(resolve, 1500));
    const large = [...document.querySelectorAll("canvas")].filter(
        canvas => canvas.id !== "graph-canvas" && canvas.clientWidth > 300 && canvas.clientHeight > 200);
    if (large.length !== 1) return `${large.length} canvases`;
    large[0].setAttribute("data-fe2e-viewer", "");
    return "";
}"""


def look(frontend) -> np.ndarray:
    """(H,W,3) float in [0,255]: the viewer's canvas."""
    shot = frontend.page.locator("canvas[data-fe2e-viewer]").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=np.float32)


def test_preview_3d_draws_the_mesh(frontend, server, tmp_path) -> None:
    workflow = workflows.read("photo_to_mesh")
    # Software rendering of a few thousand triangles is quick, that of every pixel is not.
    [mesh] = [node for node in workflow["nodes"] if node["type"] == "FE2EMesh"]
    names = [field["name"] for field in mesh["inputs"] if "widget" in field]
    mesh["widgets_values"][names.index("stride")] = 4
    frontend.to_prompt(workflow)
    # At its first start the interface shows its templates over everything.
    frontend.page.keyboard.press("Escape")
    frontend.page.wait_for_timeout(1000)
    wrong = frontend.page.evaluate(_SHOW)
    if wrong:
        pytest.fail(f"the viewer of Preview 3D was not found: {wrong}")
    empty = look(frontend)
    server.wait(frontend.page.evaluate(_QUEUE))
    deadline = time.monotonic() + 60
    changed = np.zeros(0)
    while time.monotonic() < deadline:
        frontend.page.wait_for_timeout(500)
        shown = look(frontend)
        changed = np.abs(shown - empty).max(axis=-1) > 24
        if changed.mean() > 0.2:
            break
    Image.fromarray(shown.astype(np.uint8)).save(tmp_path / "mesh.png")
    assert changed.mean() > 0.2, f"nothing appeared in the viewer; see {tmp_path / 'mesh.png'}"
    assert shown[changed].std(axis=0).min() > 20, "the mesh has one flat colour: its texture is missing"
