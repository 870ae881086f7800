"""Tests of the nodes run with the real ComfyUI imported into this process (see tests/harness/inprocess.py).
"""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.harness import inprocess

# Before collection: test modules may import comfy at their top.
inprocess.import_comfyui()


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The imported pack; `tests.harness.inprocess.pack_module("nodes.loading")` gives a module of it."""
    return inprocess.import_pack()
