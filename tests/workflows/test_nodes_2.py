"""The templates in the interface's other way to draw nodes, Nodes 2.0: every node an element of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import workflows
from tests.harness.browser import Frontend, open_frontend
from tests.workflows.test_browser import PACK, assert_nothing_overlaps, assert_widgets_arrived
from tools.server import ComfyServer

SETTING = "Comfy.VueNodes.Enabled"
_SET = "([name, value]) => window.app.extensionManager.setting.set(name, value)"
_LOAD = "workflow => window.app.loadGraphData(workflow, true, true, null)"
_ELEMENTS = """() => [...document.querySelectorAll('[data-node-id]')].map(element => {
    const box = element.getBoundingClientRect();
    return {id: element.dataset.nodeId, x: box.x, y: box.y, width: box.width, height: box.height,
            title: element.innerText.split('\\n')[0], text: element.innerText,
            pictures: [...element.querySelectorAll('img')].map(image => image.naturalWidth)};
})"""

# The picture that was loaded and the two that were saved.
_SHOWN = "() => [...document.querySelectorAll('[data-node-id] img')].filter(image => image.naturalWidth).length === 3"


@pytest.fixture(scope="module")
def frontend(server: ComfyServer, browser) -> Iterator[Frontend]:
    """A page of its own; the server keeps the setting, so it is taken back for the tests that follow."""
    with open_frontend(server.url, browser) as page:
        page.open_template(PACK, "quick_start")  # which closes the template browser, that greets whoever is new
        page.page.evaluate(_SET, [SETTING, True])
        try:
            yield page
        finally:
            page.page.evaluate(_SET, [SETTING, False])


def elements(frontend: Frontend) -> dict[str, dict]:
    """The nodes as the page has them, by their number."""
    return {element["id"]: element for element in frontend.page.evaluate(_ELEMENTS)}


def show(frontend: Frontend, name: str) -> dict[str, dict]:
    """Puts a template on the page; its nodes once they have taken their places."""
    wanted = {str(node["id"]) for node in workflows.read(name)["nodes"]}
    frontend.page.evaluate(_LOAD, workflows.read(name))
    frontend.page.wait_for_function(
        "count => document.querySelectorAll('[data-node-id]').length === count", arg=len(wanted)
    )
    frontend.page.wait_for_timeout(1500)
    frontend.fit()
    found = elements(frontend)
    assert set(found) == wanted
    return found


@pytest.mark.parametrize("name", workflows.names())
def test_template_opens_tidily(name: str, frontend) -> None:
    found = show(frontend, name)
    assert frontend.complaints() == []
    assert_widgets_arrived(name, frontend)
    assert_nothing_overlaps(list(found.values()), title=0)


def test_widgets_that_come_with_a_choice_appear_and_the_results_are_shown(frontend, server) -> None:
    show(frontend, "quick_start")
    number = next(node["id"] for node in frontend.nodes() if node["type"] == "FE2EEstimate")
    assert "longest_side" not in elements(frontend)[number]["text"]
    frontend.page.locator(f"[data-node-id='{number}']").get_by_text("trained size").click()
    frontend.page.get_by_role("option", name="longest side").click()
    frontend.page.wait_for_timeout(500)
    assert "longest_side" in elements(frontend)[number]["text"]
    frontend.set_widget("FE2EEstimate", "size.longest_side", 256)
    server.wait(frontend.press_run(), timeout=300)
    frontend.page.wait_for_function(_SHOWN)
    saved = [node["id"] for node in frontend.nodes() if node["type"] == "SaveImage"]
    shown = elements(frontend)
    assert len(saved) == 2 and all(shown[number]["pictures"] == [320] for number in saved)
    assert frontend.complaints() == []
