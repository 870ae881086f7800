"""ComfyUI's own frontend in a headless Chromium: the only thing that turns a saved workflow into a prompt."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, Response, sync_playwright

#: Chromium must run without a GPU or a sandbox (CI runs as root), and must not talk to anyone but the server.
#: A rule of its own instead of intercepted requests: those wait while a test waits for the server.
ONLY_THE_SERVER = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", ONLY_THE_SERVER]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_MS = 120_000
#: Pixels of the page that the interface's own bars take: left, top, right, bottom.
MARGINS = (80, 110, 30, 60)

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
_CARDS = "[...document.querySelectorAll('[data-testid^=template-workflow-]')]"
_THUMBNAILS_ARE_THERE = f"() => {_CARDS}.every(card => card.querySelector('img')?.complete)"
_THUMBNAILS = f"""() => Object.fromEntries({_CARDS}.map(card => [
    card.dataset.testid.replace("template-workflow-", ""), card.querySelector("img")?.naturalWidth ?? 0]))"""
# Everything by which the interface says that something is wrong: dialogs, toasts, and the list of errors.
_COMPLAINTS = """() => [...document.querySelectorAll(
    '[role=dialog], .p-dialog, .p-toast-message, [data-testid=error-overlay], [data-testid*=missing]')]
    .filter(element => element.offsetParent !== null || element.getClientRects().length > 0)
    .map(element => (element.innerText || element.dataset.testid || "?").trim().replaceAll(/\\s+/g, " "))"""
# Puts the whole graph onto the page, text and all however small, and nothing of the interface over it.
_FIT = """async ([left, top, right, bottom]) => {
    const set = (key, value) => window.app.extensionManager?.setting?.set(key, value)?.catch?.(() => {});
    await set("Comfy.Minimap.Visible", false);
    await set("LiteGraph.Canvas.MinFontSizeForLOD", 0);
    await set("LiteGraph.Canvas.LowQualityRenderingZoomThreshold", 0.1);
    await set("Comfy.Graph.CanvasInfo", false);
    const canvas = window.app.canvas, all = window.app.graph.nodes, title = 30;
    const x0 = Math.min(...all.map(n => n.pos[0])), x1 = Math.max(...all.map(n => n.pos[0] + n.size[0]));
    const y0 = Math.min(...all.map(n => n.pos[1])) - title, y1 = Math.max(...all.map(n => n.pos[1] + n.size[1]));
    const wide = window.innerWidth - left - right, high = window.innerHeight - top - bottom;
    const scale = Math.min(1, wide / (x1 - x0), high / (y1 - y0));
    canvas.ds.scale = scale;
    canvas.ds.offset[0] = (left + (wide - scale * (x1 - x0)) / 2) / scale - x0;
    canvas.ds.offset[1] = (top + (high - scale * (y1 - y0)) / 2) / scale - y0;
    canvas.setDirty(true, true);
}"""
# A preview begins to load when its node is drawn, and without a mouse that moves nothing may be.
_NODES = """() => {
    window.app.canvas.setDirty(true, true);
    const canvas = window.app.canvas, ds = canvas.ds, page = canvas.canvas.getBoundingClientRect();
    return window.app.graph.nodes.map(n => ({
        id: String(n.id), type: n.type, title: n.title,
        x: n.pos[0], y: n.pos[1], width: n.size[0], height: n.size[1],
        needs: [...n.computeSize()],
        wrong: Boolean(n.has_errors) || !(n.type in window.LiteGraph.registered_node_types),
        pictures: (n.imgs ?? []).map(i => [i.naturalWidth, i.naturalHeight]),
        values: Object.fromEntries((n.widgets ?? []).map(w => [w.name, w.value])),
        seen: [page.x + (n.pos[0] + ds.offset[0]) * ds.scale, page.y + (n.pos[1] + ds.offset[1]) * ds.scale,
               n.size[0] * ds.scale, n.size[1] * ds.scale],
    }));
}"""
_SET = """([type, name, value]) => {
    const found = window.app.graph.nodes.filter(n => n.type === type).flatMap(n => n.widgets ?? [])
        .filter(w => w.name === name);
    for (const widget of found) {
        if (widget.options?.values && ![].concat(widget.options.values).includes(value)) return 0;
        widget.value = value;
    }
    return found.length;
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

    # -- what a person does

    def open_templates(self, pack: str, name: str) -> dict[str, int]:
        """Opens the template browser at a pack's page, where `name` must be: the width of each template's
        thumbnail in pixels, 0 for none.
        """
        page = self.page
        if not page.get_by_test_id("template-workflows-content").is_visible():
            page.get_by_role("button", name="Templates", exact=True).first.click()
        # The first is that of the list at the side; the heading of the page comes after it.
        page.get_by_text(pack, exact=True).first.click()
        page.get_by_test_id(f"template-workflow-{name}").wait_for()
        page.wait_for_function(_THUMBNAILS_ARE_THERE)
        return page.evaluate(_THUMBNAILS)

    def open_template(self, pack: str, name: str) -> None:
        """Opens a template by a click on its card, and waits until its graph is there."""
        self.open_templates(pack, name)
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        self.page.get_by_test_id("template-workflows-content").wait_for(state="hidden")
        self.page.wait_for_function("() => window.app.graph.nodes.length > 0")

    def press_run(self) -> str:
        """Clicks the button Run: the id of the prompt. ValueError when the server refused it."""
        def is_answer(response: Response) -> bool:
            return response.url.endswith("/prompt") and response.request.method == "POST"

        with self.page.expect_response(is_answer) as reply:
            self.page.get_by_test_id("queue-button").click()
        answer = reply.value.json()
        if "prompt_id" not in answer:
            raise ValueError(f"the server refused the prompt: {answer}")
        return answer["prompt_id"]

    # -- what a person sees

    def complaints(self) -> list[str]:
        """The texts of dialogs, of messages that pop up, and of the list of errors."""
        return self.page.evaluate(_COMPLAINTS)

    def wait_for_messages(self) -> None:
        """Until the word that a job is done, which covers a corner of the page, has gone."""
        self.page.wait_for_timeout(1000)
        self.page.get_by_text("Job completed").first.wait_for(state="hidden")

    def nodes(self) -> list[dict[str, Any]]:
        """Every node on the page: place and size in the graph (title excluded), the least size that its
        widgets need, sizes of the pictures it shows, widget values, `wrong` when it is marked as an error,
        and `seen`: x, y, width and height on the page in pixels.
        """
        return self.page.evaluate(_NODES)

    def set_widget(self, node_type: str, name: str, value: Any) -> None:
        """Types a value into a widget of each node of one type. ValueError when none takes it."""
        if not self.page.evaluate(_SET, [node_type, name, value]):
            raise ValueError(f"no {node_type} on the page has a widget {name} that takes {value}")

    def fit(self) -> None:
        """Shows the whole graph, with nothing of the interface before it."""
        self.page.evaluate(_FIT, list(MARGINS))
        self.page.wait_for_timeout(500)

    def look(self) -> Image.Image:
        """What the page shows now, as an RGB picture."""
        return Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")


@contextmanager
def open_browser(path: str) -> Iterator[Browser]:
    """Starts the Chromium at `path`. Only one at a time: Playwright's synchronous interface is one to a thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, headless=True)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_frontend(url: str, browser: Browser, width: int = 1600, height: int = 900) -> Iterator[Frontend]:
    """Opens the frontend that the server at `url` serves, in a page with settings of its own, and closes it."""
    console: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": height})
    try:
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
        page.goto(url, wait_until="load")
        page.wait_for_function(_READY)
        if not page.evaluate(_SETTLE):
            raise RuntimeError("the frontend keeps replacing the graph; it did not finish starting")
        yield Frontend(page, console)
    finally:
        page.close()
