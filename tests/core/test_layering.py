"""Who may import whom. The rules are design rules of the project; this reads every import and holds them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMFYUI = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfy_config", "folder_paths", "server",
    "execution", "node_helpers", "latent_preview", "app",
}  # fmt: skip
TRAINING = {
    "diffusers", "peft", "accelerate", "transformers", "h5py", "tensorboard", "rich", "huggingface_hub",
    "bitsandbytes",
}  # fmt: skip
ROOMS = {"fe2e_core", "nodes", "train", "tests", "tools", "benchmarks"}


@dataclass(frozen=True)
class Import:
    """One import statement."""

    line: int
    top: str  # first part of an absolute name, "" when relative
    room: str | None  # room of this repository that a relative import leads to
    module_level: bool


@dataclass(frozen=True)
class Rule:
    """What the files of a room may import, beyond the standard library."""

    anywhere: frozenset[str]  # third-party names
    lazily: frozenset[str]  # third-party names inside functions only
    rooms: frozenset[str]  # other rooms
    relative_rooms: bool  # rooms are reached by relative imports only: the pack has no name of its own


CORE = Rule(
    frozenset({"torch", "numpy", "safetensors"}), frozenset({"scipy", "PIL", "OpenEXR"}), frozenset(), True
)
NODES = Rule(
    CORE.anywhere | COMFYUI,
    frozenset({"scipy", "PIL", "OpenEXR", "aiohttp", "nodes"}),
    frozenset({"fe2e_core"}),
    True,
)
ROOT_FILE = Rule(frozenset(COMFYUI), frozenset(), frozenset({"nodes"}), True)
TRAIN = Rule(
    CORE.anywhere | TRAINING | {"scipy", "PIL", "cv2", "tqdm", "skimage", "OpenEXR"},
    frozenset(),
    frozenset({"fe2e_core"}),
    False,
)
RULES = {"fe2e_core": CORE, "nodes": NODES, "train": TRAIN}


def imports(tree: ast.Module, room: str, depth: int) -> Iterator[Import]:
    """All imports of a module that lies `depth` folders below the repository root in `room`.

    Blocks that only type checkers see count as inside a function: they import nothing at run time.
    """

    def visit(node: ast.AST, module_level: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            )
            yield from visit(child, module_level and not lazy)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(child.lineno, alias.name.split(".")[0], None, module_level)
            elif isinstance(child, ast.ImportFrom):
                if child.level == 0:
                    yield Import(child.lineno, (child.module or "").split(".")[0], None, module_level)
                elif child.level <= depth:
                    yield Import(child.lineno, "", room, module_level)
                else:  # climbs to the repository root: the first name is a room
                    names = [child.module] if child.module else [alias.name for alias in child.names]
                    for name in names:
                        yield Import(child.lineno, "", name.split(".")[0], module_level)

    return visit(tree, True)


def violations(source: str, room: str, depth: int, rule: Rule) -> list[str]:
    """What one file imports against its rule, each as "line N: ..."."""
    found = []
    for item in imports(ast.parse(source), room, depth):
        if item.room is not None:
            if item.room != room and item.room not in rule.rooms:
                found.append(f"line {item.line}: {room} must not import {item.room}")
            continue
        name = item.top
        if name in sys.stdlib_module_names or name in rule.anywhere:
            continue
        # In `nodes`, the absolute name `nodes` is ComfyUI's module; it has to be lazy, so it is listed in
        # `lazily`.
        if name in rule.lazily:
            if item.module_level:
                found.append(f"line {item.line}: {name} may only be imported inside a function")
        elif name in ROOMS:
            if rule.relative_rooms:
                found.append(f"line {item.line}: `{name}` must be imported relatively")
            elif name != room and name not in rule.rooms:
                found.append(f"line {item.line}: {room} must not import {name}")
        else:
            found.append(f"line {item.line}: {room} must not import {name}")
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def depth(path: Path) -> int:
    return len(path.relative_to(ROOT).parents) - 1


@pytest.mark.parametrize("room", sorted(RULES))
def test_room_imports_only_what_it_may(room: str) -> None:
    checked = files(room)
    assert checked, f"no Python files in {room}/: the test would hold nothing"
    found = [
        f"{path.relative_to(ROOT)} {problem}"
        for path in checked
        for problem in violations(path.read_text(), room, depth(path), RULES[room])
    ]
    assert not found, "\n".join(found)


def test_root_file_only_reaches_the_nodes() -> None:
    assert violations((ROOT / "__init__.py").read_text(), "", 0, ROOT_FILE) == []


def test_rooms_do_not_import_the_tests_or_tools_of_each_other() -> None:
    """`tools` runs ComfyUI for demo and tests; it must not import the nodes into its own process."""
    for path in files("tools"):
        names = {item.top for item in imports(ast.parse(path.read_text()), "tools", 1)}
        assert not names & (COMFYUI | {"nodes"}), path


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("fe2e_core", "import comfy.sd"),
        ("fe2e_core", "def f():\n    import folder_paths"),
        ("fe2e_core", "from ..nodes import types"),
        ("fe2e_core", "from .. import train"),
        ("fe2e_core", "import scipy"),
        ("fe2e_core", "import OpenEXR"),
        ("fe2e_core", "from fe2e_core.packing import pack"),
        ("fe2e_core", "import diffusers"),
        ("nodes", "from ..train import scenes"),
        ("nodes", "import train"),
        ("nodes", "import diffusers"),
        ("nodes", "import nodes"),
        ("nodes", "from fe2e_core import packing"),
        ("nodes", "import OpenEXR"),
        ("train", "from nodes import types"),
        ("train", "from ..nodes import types"),
        ("train", "import comfy"),
        ("train", "if True:\n    try:\n        import comfy\n    except ImportError:\n        pass"),
    ],
)
def test_a_forbidden_import_is_found(room: str, source: str) -> None:
    assert violations(source, room, 1, RULES[room])


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("fe2e_core", "import math\nimport torch\nfrom .packing import pack\nfrom . import geometry"),
        ("fe2e_core", "def f():\n    from scipy import ndimage"),
        ("nodes", "from comfy_api.latest import io\nfrom ..fe2e_core import packing\nfrom .types import X"),
        ("nodes", "def f():\n    import nodes"),
        ("train", "import diffusers\nfrom fe2e_core.packing import pack\nfrom train import scenes"),
    ],
)
def test_an_allowed_import_passes(room: str, source: str) -> None:
    assert violations(source, room, 1, RULES[room]) == []
