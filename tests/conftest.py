"""Fixtures for every room of the tests. Nothing here may import ComfyUI: tests/core must run without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run; `HYPOTHESIS_PROFILE=long` draws many more, and others each time.
hypothesis.settings.register_profile("short", derandomize=True, max_examples=25, deadline=None, database=None)
hypothesis.settings.register_profile("long", max_examples=1000, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

# The runs share two cores; threads that wait for each other make them slower, not faster.
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def models_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny FE2E models under the released names, shared by all servers of this run."""
    from tests.harness.tiny import write_fe2e_parts

    models = tmp_path_factory.mktemp("models")
    write_fe2e_parts(models)
    return models


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory: pytest.TempPathFactory, models_tree: Path) -> Iterator:
    """A real ComfyUI process with the pack and the tiny models, for the whole run: a
    tools.server.ComfyServer.
    """
    from tools.server import ComfyServer

    with ComfyServer(tmp_path_factory.mktemp("comfyui"), models=models_tree) as server:
        yield server
