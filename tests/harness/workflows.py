"""The example workflows: the files that users get, and the same in API format, kept for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tools.comfyui import ROOT

WORKFLOWS = ROOT / "workflows"
API_WORKFLOWS = ROOT / "tests" / "api_workflows"
#: `FE2E_UPDATE_WORKFLOWS=1 make test-workflows` rewrites tests/api_workflows/ with what the frontend makes.
UPDATE = os.environ.get("FE2E_UPDATE_WORKFLOWS") == "1"


def names() -> list[str]:
    """Names of the example workflows, without suffix."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def read(name: str) -> dict[str, Any]:
    """A workflow in interface format."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def read_api(name: str) -> dict[str, Any]:
    """The kept API format of a workflow."""
    return json.loads((API_WORKFLOWS / f"{name}.json").read_text())


def write_api(name: str, prompt: dict[str, Any]) -> None:
    """Keeps `prompt` as the API format of a workflow."""
    API_WORKFLOWS.mkdir(exist_ok=True)
    path = API_WORKFLOWS / f"{name}.json"
    temporary: Path = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(prompt, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def of_type(prompt: dict[str, Any], class_type: str) -> list[dict[str, Any]]:
    """The nodes of one class in an API-format prompt."""
    return [node for node in prompt.values() if node["class_type"] == class_type]
