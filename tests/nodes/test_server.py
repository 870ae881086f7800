"""The pack inside a real ComfyUI process: it loads silently, offers its nodes and always says the same."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness import tiny
from tests.harness.pictures import write_example
from tools.server import ComfyServer, PromptError

PROMISED = {"FE2ELoadModel", "FE2EEstimate", "FE2ELogDepthDecode", "FE2ENormalColorize"}

PROMPT = {
    "image": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "model": {
        "class_type": "FE2ELoadModel",
        "inputs": {
            "source": "released parts",
            "source.transformer": tiny.TRANSFORMER,
            "source.lora": tiny.LORA,
            "source.lora_strength": 1.0,
            "source.vae_name": tiny.VAE,
            "source.prompt_cache": tiny.PROMPT_CACHE,
            "weight_dtype": "default",
            "fold": True,
        },
    },
    "estimate": {
        "class_type": "FE2EEstimate",
        "inputs": {
            "fe2e_model": ["model", 0],
            "image": ["image", 0],
            "size": "longest side",
            "size.longest_side": 128,
            "near_white": True,
            "chunk": 0,
        },
    },
    "depth": {"class_type": "SaveImage", "inputs": {"images": ["estimate", 1], "filename_prefix": "depth"}},
    "raw": {
        "class_type": "FE2ESaveNPZ",
        "inputs": {
            "geometry": ["estimate", 0],
            "filename_prefix": "raw",
            "include_image": False,
            "compress": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models_tree: Path) -> Iterator[ComfyServer]:
    """Without a cache: every prompt executes every node."""
    folder = tmp_path_factory.mktemp("cache-none")
    with ComfyServer(folder, models=models_tree, arguments=["--cache-none"]) as running:
        write_example(running.input)
        yield running


def raw(server: ComfyServer) -> dict[str, np.ndarray]:
    """Runs the prompt and reads the raw floats and the depth picture that it saved."""
    result = server.run(PROMPT)
    assert set(result.executed) >= set(PROMPT), "a cached result would prove nothing"
    [archive], [picture] = result.files("raw", "files"), result.files("depth")
    with np.load(archive, allow_pickle=False) as arrays, Image.open(picture) as depth:
        return {**{key: arrays[key] for key in arrays.files}, "picture": np.asarray(depth)}


def test_starts_without_a_warning_of_ours(server: ComfyServer) -> None:
    log = re.sub(r"\x1b\[[0-9;]*m", "", server.log)
    assert "To see the GUI go to" in log
    assert "IMPORT FAILED" not in log
    assert "Traceback" not in log
    loud = [line for line in log.splitlines() if re.search(r"WARN|ERROR|CRITICAL", line)]
    assert not [line for line in loud if "fe2e" in line.lower()], loud


def test_offers_the_promised_nodes(server: ComfyServer) -> None:
    info = server.object_info()
    ours = {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.fe2e"}
    assert set(ours) >= PROMISED
    for name, node in ours.items():
        assert name.startswith("FE2E")
        assert node["category"].split("/")[0] == "FE2E", name
        assert node["description"], name
        assert node["display_name"], name


def test_every_input_of_every_node_has_a_tooltip(server: ComfyServer) -> None:
    """Read from what the server sends to the frontend, so that sub-inputs of dynamic combos are included."""

    def missing(specification: dict, path: str) -> Iterator[str]:
        for group in ("required", "optional"):
            for name, (kind, *rest) in specification.get(group, {}).items():
                options = rest[0] if rest else {}
                if not options.get("tooltip"):
                    yield f"{path}.{name}"
                if kind == "COMFY_DYNAMICCOMBO_V3":
                    for option in options["options"]:
                        yield from missing(option["inputs"], f"{path}.{name}[{option['key']}]")

    ours = {name: node for name, node in server.object_info().items() if name.startswith("FE2E")}
    assert [lack for name, node in ours.items() for lack in missing(node["input"], name)] == []


def test_same_input_same_output_bit_for_bit(server: ComfyServer) -> None:
    """Two executions in one server, and one after a restart."""
    first, second = raw(server), raw(server)
    server.restart()
    third = raw(server)
    assert {"log_depth", "normal", "picture"} <= set(first)
    for other in (second, third):
        assert set(other) == set(first)
        for key, value in first.items():
            assert value.dtype == other[key].dtype
            assert value.tobytes() == other[key].tobytes(), key


def test_nothing_is_overwritten(server: ComfyServer) -> None:
    before = set(server.output.glob("raw*.npz"))
    server.run(PROMPT)
    after = set(server.output.glob("raw*.npz"))
    assert before < after
    assert len(after) == len(before) + 1


def test_errors_reach_the_user_with_the_reason(server: ComfyServer, models_tree: Path) -> None:
    """A wrong file is refused with a message that names the input and what was found; the server lives on."""
    shutil.copyfile(models_tree / "loras" / tiny.LORA, models_tree / "vae" / "wrong.safetensors")
    inputs = {**PROMPT["model"]["inputs"], "source.vae_name": "wrong.safetensors"}
    with pytest.raises(PromptError, match=r"FE2ELoadModel: ValueError: VAE: .*LoRA"):
        server.run({**PROMPT, "model": {**PROMPT["model"], "inputs": inputs}})
    server.run(PROMPT)
