"""What the checker comfy-test's VALIDATION says of this pack's templates, beside ComfyUI's own:

    pip install --no-deps comfy-test
    python -m benchmarks.template_validation

The rule is applied by the checker's own class to the node definitions of a real ComfyUI. Of ComfyUI's templates only those count
whose nodes it knows all.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from importlib.metadata import distributions, version
from pathlib import Path

from tools.comfyui import DEFAULT_VERSION, ROOT
from tools.server import ComfyServer

#: What the interface itself brings, and subgraphs, which are named by an id.
INTERFACE_ONLY = re.compile(r"MarkdownNote|Note|Reroute|PrimitiveNode|[0-9a-f-]{36}")


def official_templates() -> list[Path]:
    """JSON files of the installed packages of templates that belong to ComfyUI."""
    found = [d for d in distributions() if d.metadata["Name"].lower().replace("_", "-").startswith("comfyui-workflow-templates")]
    return sorted({Path(file.locate()) for d in found for file in d.files or () if file.suffix == ".json"})


def counts(validation: object, paths: Iterable[Path]) -> str:
    """How many of these are workflows of known nodes, are accepted, and have wrong links or definitions."""
    known = accepted = broken = 0
    for path in paths:
        workflow = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
            continue
        errors = validation.validate(workflow).errors
        unknown = [e for e in errors if e.message.startswith("Unknown node type")]
        if any(not INTERFACE_ONLY.fullmatch(e.node_type) for e in unknown):
            continue
        known, accepted, broken = known + 1, accepted + (not errors), broken + any(e.level != "schema" for e in errors)
    return f"{known} templates, {accepted} accepted, {broken} with a link or a definition that does not fit"


def main() -> None:
    try:
        from comfy_test.comfyui.validator import WorkflowValidation
    except ImportError:
        raise SystemExit("comfy-test is not installed: pip install --no-deps comfy-test") from None
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        validation = WorkflowValidation(server.get("/object_info"))
    print(f"comfy-test {version('comfy-test')}, ComfyUI {DEFAULT_VERSION}")
    print("this pack:", counts(validation, sorted((ROOT / "workflows").glob("*.json"))))
    print("ComfyUI's own:", counts(validation, official_templates()))


if __name__ == "__main__":
    main()
