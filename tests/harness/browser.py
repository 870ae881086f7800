"""ComfyUI's own frontend in a headless Chromium: the only thing that turns a saved workflow into a prompt."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, sync_playwright

#: Chromium must run without a GPU or a sandbox (CI runs as root), and must not talk to anyone but the server.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_MS = 120_000

# The frontend has made its graph and knows the nodes of the server.
_READY = "() => window.app?.graph && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 50"
# ... and no longer restores its first workflow over what is put there: a marker has to survive for a second.
_SETTLE = """async () => {
    for (let attempt = 0; attempt < 30; attempt++) {
        const marker = window.LiteGraph.createNode("Note");
        window.app.graph.add(marker);
        await new Promise(resolve => setTimeout(resolve, 1000));
        if (window.app.graph.nodes.includes(marker)) return true;
    }
    return false;
}"""
_LOAD = """async (workflow) => {
    await window.app.loadGraphData(workflow, true, true, null);
    const known = window.LiteGraph.registered_node_types;
    const unknown = window.app.graph.nodes.map(node => node.type).filter(type => !(type in known));
    const prompt = await window.app.graphToPrompt();
    return {output: prompt.output, unknown, nodes: window.app.graph.nodes.length};
}"""


def find_browser() -> str | None:
    """Path of a Chromium: FE2E_CHROMIUM, or one on the PATH, or None."""
    given = os.environ.get("FE2E_CHROMIUM")
    if given:
        return given
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Frontend:
    """One open page of ComfyUI."""

    def __init__(self, page: Page, console: list[str]) -> None:
        self.page = page
        self.console = console

    def to_prompt(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Loads an interface-format workflow and returns it in API format. ValueError for unknown nodes."""
        result = self.page.evaluate(_LOAD, workflow)
        if result["unknown"]:
            raise ValueError(f"the frontend does not know these nodes: {result['unknown']}")
        if result["nodes"] != len(workflow["nodes"]):
            raise ValueError(f"{result['nodes']} nodes were loaded, the file has {len(workflow['nodes'])}")
        return result["output"]

    def screenshot(self, path: Path) -> None:
        """A picture of the page."""
        self.page.screenshot(path=str(path))


@contextmanager
def open_frontend(
    url: str, browser_path: str, width: int = 1600, height: int = 900
) -> Iterator[Frontend]:
    """Opens the frontend that the server at `url` serves, and closes the browser afterwards."""
    console: list[str] = []

    def only_the_server(route: Route) -> None:
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS, headless=True)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(TIMEOUT_MS)
            page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
            page.route("**/*", only_the_server)
            page.goto(url, wait_until="load")
            page.wait_for_function(_READY)
            if not page.evaluate(_SETTLE):
                raise RuntimeError("the frontend keeps replacing the graph; it did not finish starting")
            yield Frontend(page, console)
        finally:
            browser.close()
