"""What comes over a wire is held to the limits that the interface shows, for every node and in every execution."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from comfy_api.latest import io

from tests.harness.inprocess import import_pack, pack_module, run_node


async def nodes() -> list[type]:
    return await (await import_pack().comfy_entrypoint()).get_node_list()


@pytest.mark.parametrize("node", asyncio.run(nodes()), ids=lambda node: node.__name__)
def test_every_node_looks_at_its_limits(node):
    assert issubclass(node, pack_module("nodes.node").Node)
    # as ComfyUI runs it, on a copy of the class
    clone = node.PREPARE_CLASS_CLONE(None)
    node.GET_SCHEMA()
    for field in node.GET_SCHEMA().inputs:
        if field.get_io_type() in ("FLOAT", "INT"):
            for wrong in (math.nan, math.inf, field.max + 1, field.min - 1, "3"):
                with pytest.raises(ValueError, match=rf"^{field.id}: found .* from .* to "):
                    clone.EXECUTE_NORMALIZED(**{field.id: wrong})
        elif field.get_io_type() in ("COMBO", "COMFY_DYNAMICCOMBO_V3") and not node.lists_files:
            wrong = {field.id: "no such choice"} if field.get_io_type() != "COMBO" else "no such choice"
            with pytest.raises(ValueError, match=rf"^{field.id}: found 'no such choice', expected one of"):
                clone.EXECUTE_NORMALIZED(**{field.id: wrong})


def test_limits_of_the_chosen_branch_count():
    node = pack_module("nodes.anchor").FE2EAnchorDepth
    with pytest.raises(ValueError, match=r"^near: found -1"):
        run_node(node, geometry={}, anchor={"anchor": "near and far", "near": -1.0, "far": 5.0})


def test_what_is_in_order_arrives_unchanged():
    base = pack_module("nodes.node").Node
    seen = []

    class Probe(base):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(node_id="Probe", inputs=[io.Int.Input("count", min=0, max=5), io.Image.Input("image"),
                                                      io.Float.Input("free", optional=True)], outputs=[])  # fmt: skip

        @classmethod
        def execute(cls, count, image, free=None) -> io.NodeOutput:
            seen.append((cls, count, image, free))
            return io.NodeOutput()

    image = torch.zeros(1, 2, 2, 3)
    run_node(Probe, count=5, image=image, free=1e30)
    run_node(Probe, count=0, image=image)
    assert [entry[1:] for entry in seen] == [(5, image, 1e30), (0, image, None)]
    with pytest.raises(ValueError, match="free: found nan"):
        run_node(Probe, count=0, image=image, free=math.nan)
    assert len(seen) == 2
