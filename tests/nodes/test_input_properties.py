"""Every input of every node: what a user can set is answered, what a wire can bring is answered or refused by name."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import re
import resource
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import Types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.inprocess import import_pack, pack_module, run_node
from tests.harness.node_inputs import Wires, inputs
from tests.harness.tiny import PROMPT_CACHE, TRANSFORMER, VAE, write_fe2e_parts


async def _nodes() -> dict[str, type]:
    extension = await import_pack().comfy_entrypoint()
    return {node.GET_SCHEMA().node_id: node for node in await extension.get_node_list()}


NODES = asyncio.run(_nodes())
#: Each execution of these runs the tiny network or writes it to disk.
SLOW = {"FE2EEstimate", "FE2EFeatureView", "FE2ESaveCheckpoint"}
#: Chooses files by name; what those hold is the business of other tests.
LOADERS = {"FE2ELoadModel", "FE2ELoadEXR"}
#: A ComfyUI before 0.27 has no type for what these give: they are there, and say so (see `answers`).
TOO_NEW = set() if hasattr(Types, "SPLAT") else {"FE2ESplat"}


@pytest.fixture(scope="module", autouse=True)
def output(tmp_path_factory):
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path_factory.mktemp("output größe 深度")))
    yield
    folder_paths.set_output_directory(before)


@pytest.fixture(autouse=True)
def little_memory():
    """A number that asks for a picture as large as the machine must not get it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def wires(tmp_path_factory) -> Wires:
    models = tmp_path_factory.mktemp("models")
    write_fe2e_parts(models)
    loaded = pack_module("nodes.loading").load_parts(
        str(models / "diffusion_models" / TRANSFORMER), None, 1.0, str(models / "vae" / VAE),
        str(models / "fe2e" / PROMPT_CACHE), "fp32")  # fmt: skip
    loaded = dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, height=32, width=32))
    return Wires({"FE2E_MODEL": loaded, "MODEL": loaded.patcher.clone(), "VAE": loaded.vae},
                 frozenset({"reference sizes"}))  # those are of a thousand pixels


def check(value: Any, kind: str, raw: bool) -> None:
    """An output that another node can take."""
    if kind == "IMAGE":
        assert value.ndim == 4 and value.shape[-1] == 3 and value.dtype == torch.float32 and value.numel() > 0
        assert bool(value.isfinite().all()), "a picture of numbers"
        if not raw:
            assert 0 <= float(value.min()) and float(value.max()) <= 1
    elif kind == "MASK":
        assert value.ndim == 3 and bool(value.isfinite().all())
    elif kind == "FE2E_GEOMETRY":
        pack_module("nodes.types").require_geometry(value)
        for key in ("depth", "log_range", "log_near", "intrinsics", "confidence"):
            if value.get(key) is not None:
                assert len(value[key]) == len(value["log_depth"]), key
                assert bool(value[key].isfinite().all()), key
        if value.get("depth") is not None:
            assert float(value["depth"].min()) > 0
    elif kind in ("FLOAT", "INT"):
        assert math.isfinite(value)
    elif kind == "STRING":
        assert isinstance(value, str) and "nan" not in value.lower().split()


def answers(node: type, given_inputs: dict[str, Any]) -> None:
    before = {key: value.clone() for key, value in given_inputs.items() if isinstance(value, torch.Tensor)}
    schema = node.GET_SCHEMA()
    if schema.node_id in TOO_NEW:
        # A wire's wrong value may be named first, a ValueError as everywhere; nothing else comes out of it.
        with pytest.raises(RuntimeError, match="update ComfyUI"):
            run_node(node, **given_inputs)
        return
    outputs = run_node(node, **given_inputs)
    assert len(outputs) == len(schema.outputs)
    for value, output in zip(outputs, schema.outputs, strict=True):
        if any(value is given for given in given_inputs.values()):
            continue  # handed on as it came
        if isinstance(value, str):
            for own in (text for text in given_inputs.values() if isinstance(text, str) and text):
                value = value.replace(own, "")  # a file may be called "nan"
        check(value, output.get_io_type(), raw=schema.node_id == "FE2EAnchorDepth" or output.display_name in ("raw", "image"))
    for key, value in before.items():
        assert torch.equal(given_inputs[key].nan_to_num(7), value.nan_to_num(7)), f"'{key}' belongs to others and was changed"


#: What may be said of inputs that the interface allows: facts about this scene, not about the kind of input.
SCENE = re.compile(r"no pixel|mask|needs|lacks|expected 0 < near < far|outside|points|batch_index|counts|triangle|connected|"
                   r"at least|exactly one|state|kind|range: there is no|size|number", re.IGNORECASE)  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(NODES) - LOADERS))
def test_what_a_user_can_set_is_answered(name: str, wires: Wires) -> None:
    node = NODES[name]

    @settings(suppress_health_check=list(HealthCheck), max_examples=settings.default.max_examples // (5 if name in SLOW else 2))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        given_inputs = data.draw(inputs(node, False, wires))
        try:
            answers(node, given_inputs)
        except ValueError as error:
            assert SCENE.search(str(error)), f"{error!r} for {given_inputs}"

    run()


@pytest.mark.parametrize("name", sorted(set(NODES) - LOADERS))
def test_what_a_wire_can_bring_is_answered_or_refused_by_name(name: str, wires: Wires) -> None:
    node = NODES[name]
    names = {field.id for field in node.GET_SCHEMA().inputs}

    @settings(suppress_health_check=list(HealthCheck), max_examples=settings.default.max_examples // (5 if name in SLOW else 2))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        given_inputs = data.draw(inputs(node, True, wires))
        dynamic = {key for value in given_inputs.values() if isinstance(value, dict) for key in value}
        try:
            answers(node, given_inputs)
        except (ValueError, FileNotFoundError) as error:
            assert set(re.findall(r"\w+", str(error))) & (names | dynamic), f"which input? {error!r}"

    run()
