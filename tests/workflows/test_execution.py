"""Every workflow runs in a real ComfyUI, over its HTTP interface, with ComfyUI's own loaders.

Large models are tiny files of the right format under the released names (tests/harness/tiny.py); the embedded
model is the real one. For time, a few widgets are turned down: see `prepared`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.harness import workflows
from tools.server import ComfyServer, Prompt, Result

Runs = Callable[[str], tuple[Prompt, Result]]


def prepared(name: str) -> Prompt:
    """The kept prompt with fewer sampling steps, a smaller picture to sample, and FE2E's released size (0.8
    megapixels) at a quarter of its side. The quick start, whose model is small, stays as it is.
    """
    prompt = workflows.read_api(name)
    for sampler in workflows.of_type(prompt, "KSampler"):
        sampler["inputs"]["steps"] = 2
    for scale in workflows.of_type(prompt, "ImageScaleToTotalPixels"):
        scale["inputs"]["megapixels"] = 0.06
    if name != "quick_start":
        for estimate in workflows.of_type(prompt, "FE2EEstimate"):
            estimate["inputs"] |= {"size": "longest side", "size.longest_side": 256}
    return prompt


@pytest.fixture(scope="module")
def run(server: ComfyServer) -> Runs:
    """Each workflow is run once; the tests look at the same result."""
    done: dict[str, tuple[Prompt, Result]] = {}

    def once(name: str) -> tuple[Prompt, Result]:
        if name not in done:
            prompt = prepared(name)
            done[name] = prompt, server.run(prompt)
        return done[name]

    return once


def pictures(prompt: Prompt, result: Result, class_type: str = "SaveImage") -> dict[str, np.ndarray]:
    """What the image nodes of one class wrote: title -> (H,W,C) uint8 of the first file."""
    found = {}
    for node_id, node in prompt.items():
        if node["class_type"] == class_type:
            path, *_ = result.files(node_id)
            found[node["_meta"]["title"]] = np.asarray(Image.open(path))
    return found


@pytest.mark.parametrize("name", workflows.names())
def test_workflow_runs_and_shows_something(name: str, run: Runs) -> None:
    prompt, result = run(name)
    saved = {**pictures(prompt, result), **pictures(prompt, result, "PreviewImage")}
    assert saved
    for title, picture in saved.items():
        assert picture.ndim == 3, title
        assert picture.std() > 0.5, f"{title} is one flat colour"


def test_quick_start_gives_both_pictures_at_the_inputs_size(server: ComfyServer, run: Runs) -> None:
    saved = pictures(*run("quick_start"))
    with Image.open(server.input / "example.png") as image:
        size = (image.height, image.width, 3)
    assert {title: picture.shape for title, picture in saved.items()} == {
        "Depth (near is white)": size,
        "Normals (OpenGL)": size,
    }
    depth, normal = saved["Depth (near is white)"], saved["Normals (OpenGL)"]
    assert (depth[..., 0] == depth[..., 2]).all(), "a depth picture is grey"
    assert depth.max() > 250
    assert depth.min() < 5
    vectors = normal.astype(np.float64) / 127.5 - 1
    assert np.abs(np.linalg.norm(vectors, axis=-1) - 1).max() < 0.02, "normal colours are unit vectors"
    assert (vectors[..., 2] > 0).mean() > 0.9, "in OpenGL colours what is seen faces the camera: blue"


def test_released_parts_save_the_raw_geometry(server: ComfyServer, run: Runs) -> None:
    prompt, result = run("released_model")
    [node_id] = [key for key, node in prompt.items() if node["class_type"] == "FE2ESaveNPZ"]
    [path] = result.files(node_id, "files")
    with Image.open(server.input / "example.png") as image, np.load(path, allow_pickle=False) as geometry:
        shape = (1, image.height, image.width)
        assert geometry["log_depth"].shape == shape
        assert geometry["log_depth"].dtype == np.float32
        assert geometry["normal"].shape == (*shape, 3)
        assert np.abs(np.linalg.norm(geometry["normal"], axis=-1) - 1).max() < 1e-4


def test_both_controls_guide_the_picture(server: ComfyServer, run: Runs) -> None:
    """Each ControlNet switched off changes the picture: depth and normals really arrive at the sampler."""
    prompt, result = run("controlnet_depth_normal")
    before = pictures(prompt, result)["Save Image"]
    for title in ("Apply depth", "Apply normals"):
        changed = copy.deepcopy(prompt)
        [apply] = [node for node in changed.values() if node["_meta"]["title"] == title]
        apply["inputs"]["strength"] = 0.0
        after = pictures(changed, server.run(changed))["Save Image"]
        assert before.shape == after.shape
        assert (before != after).any(), title
