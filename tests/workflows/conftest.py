"""The workflows against one real server: converted by its frontend in a browser, run over its HTTP interface.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.pictures import write_clip, write_example
from tools.server import ComfyServer


@pytest.fixture(scope="session")
def models_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the workflows name: tiny FE2E models, and Stable Diffusion 1.5 with ControlNets."""
    from tests.harness.tiny import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def server(comfy_server: ComfyServer) -> ComfyServer:
    """The server with the picture and the clip that the workflows name."""
    write_example(comfy_server.input)
    write_clip(comfy_server.input)
    return comfy_server


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium. Without one the tests are skipped, on the CI machine they fail."""
    from tests.harness.browser import find_browser, open_browser

    path = find_browser()
    if path is None:
        message = "no Chromium found (install the package `chromium`, or set FE2E_CHROMIUM to one)"
        if os.environ.get("FE2E_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    with open_browser(path) as opened:
        yield opened


@pytest.fixture(scope="session")
def frontend(server: ComfyServer, browser) -> Iterator:
    """ComfyUI's page in that browser."""
    from tests.harness.browser import open_frontend

    with open_frontend(server.url, browser) as page:
        yield page
