"""Node ids that were given out and then replaced: workflows and prompts that name them go on working.

An id is shared in workflows and should never change. If one has to, it is entered here, and that is all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import comfy_api.latest
from comfy_api.latest import io

#: Old node id -> id of the node that takes its place, with the same inputs and outputs. None was renamed yet.
RENAMES: Mapping[str, str] = {}


def always_complete(schema: io.Schema) -> bool:
    """Whether every prompt has every input of this node: none is optional, none depends on another's value.

    ComfyUI's own replacement stops with a KeyError at a prompt that leaves a mapped input out, and drops the
    links of those that are not mapped.
    """
    return not any(
        getattr(field, "optional", False) or isinstance(field, io.DynamicCombo.Input)
        for field in schema.inputs
    )


def stand_in(node: type[io.ComfyNode], old: str) -> type[io.ComfyNode]:
    """The same node under its old id, marked as deprecated so that search does not list it twice."""

    def define_schema(cls) -> io.Schema:
        schema = node.define_schema()
        schema.node_id = old
        schema.is_deprecated = True
        return schema

    return type(old, (node,), {"define_schema": classmethod(define_schema)})


def replacement(schema: io.Schema, old: str):
    """ComfyUI's entry: every input, widget and output keeps its place. None where ComfyUI has none."""
    if not hasattr(io, "NodeReplace"):
        return None
    return io.NodeReplace(
        new_node_id=schema.node_id,
        old_node_id=old,
        old_widget_ids=[field.id for field in schema.inputs if isinstance(field, io.WidgetInput)],
        input_mapping=[{"new_id": field.id, "old_id": field.id} for field in schema.inputs],
        output_mapping=[{"new_idx": index, "old_idx": index} for index in range(len(schema.outputs))],
    )


async def keep_old_ids(
    nodes: Sequence[type[io.ComfyNode]], renames: Mapping[str, str] = RENAMES
) -> list[type[io.ComfyNode]]:
    """Tells ComfyUI what replaces what, and returns stand-ins for what it cannot replace itself.

    Where ComfyUI can, its interface offers to swap the node and its server does so in prompts. Older versions
    cannot, and no version can where an input may be left out. Raises ValueError for an old id that is in use
    and for a new one that is no node.
    """
    if not renames:
        return []
    by_id = {node.GET_SCHEMA().node_id: node for node in nodes}
    registry = getattr(comfy_api.latest.ComfyAPI(), "node_replacement", None)
    kept = []
    for old, new in renames.items():
        if old in by_id or new not in by_id:
            raise ValueError(
                f"renames: {old!r} -> {new!r}: the first may be no node of this pack, the second must."
            )
        node = by_id[new]
        schema = node.define_schema()
        entry = replacement(schema, old) if registry is not None and always_complete(schema) else None
        if entry is None:
            kept.append(stand_in(node, old))
        else:
            await registry.register(entry)
    return kept
