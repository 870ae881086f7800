"""ComfyUI's real modules in this very process, and the pack under a name of its own.

Many node tests need no server: they call `execute` and look at tensors. They still use ComfyUI's own loaders,
model management and node interface. `import_comfyui()` has to run before anything imports `comfy`: its
modules look at the command line and for a GPU when they are imported. tests/nodes/conftest.py does so;
tests/core must never.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tools.comfyui import ROOT, obtain

#: The pack's package name in this process. ComfyUI uses the path of the folder; both are "not `nodes`".
PACK = "fe2e_pack"


def import_comfyui(base: Path | None = None, flags: Sequence[str] = ("--cpu",)) -> Path:
    """Makes `import comfy, folder_paths, comfy_api, nodes` mean the real ComfyUI, on the CPU unless `flags`
    (its command line) say otherwise. Returns its tree.

    base: folder for models, input, output, temp and user; a fresh temporary one when None. Idempotent: a
    second call changes nothing, its flags neither.
    """
    tree = obtain()
    if "comfy.cli_args" in sys.modules:
        return tree
    base = base or Path(tempfile.mkdtemp(prefix="fe2e-comfyui-"))
    for name in ("models", "custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    # First on the path: `nodes` must be ComfyUI's here, though the repository root is on the path as well.
    sys.path.insert(0, str(tree))
    command_line = sys.argv
    sys.argv = ["main.py", *flags, "--base-directory", str(base), "--disable-auto-launch"]
    try:
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = command_line
    importlib.import_module("folder_paths")
    # Early, as main.py does: ComfyUI's `nodes` puts its folder `comfy` first on the path, which has another `utils`.
    importlib.import_module("utils.extra_config")
    return tree


def import_pack() -> ModuleType:
    """The pack, imported the way ComfyUI does it: by path, under a name that is not its folder's."""
    import_comfyui()
    if PACK in sys.modules:
        return sys.modules[PACK]
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[PACK]
        raise
    return module


def pack_module(name: str) -> ModuleType:
    """A module of the pack: `pack_module("nodes.loading")`, `pack_module("fe2e_core.packing")`."""
    import_pack()
    return importlib.import_module(f"{PACK}.{name}")


def run_node(node: type, /, **inputs: Any) -> tuple[Any, ...]:
    """Executes a V3 node the way ComfyUI's executor does (locked class clone, inference mode): its outputs.

    Inputs that have a default in the schema and are not given get that default; dynamic combos are given as
    their dict. The outputs are those of the NodeOutput, or () for none.
    """
    import torch
    from comfy_execution.utils import CurrentNodeContext

    schema = node.GET_SCHEMA()
    given = dict(inputs)
    accepted = inspect.signature(node.execute).parameters
    for field in schema.inputs:
        default = getattr(field, "default", None)
        if field.id not in given and default is not None and field.id in accepted:
            given[field.id] = default
    clone = node.PREPARE_CLASS_CLONE(None)
    with torch.inference_mode(), CurrentNodeContext("test-prompt", "test-node", 0):
        result = clone.EXECUTE_NORMALIZED(**given)
    if inspect.isawaitable(result):
        raise TypeError(f"{schema.node_id} is asynchronous; run it through the server instead")
    return tuple(result.result) if result.result is not None else ()
