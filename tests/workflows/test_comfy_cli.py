"""The official command line tool runs the quick start against the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.harness import workflows
from tools.server import ComfyServer


def test_comfy_cli_runs_the_quick_start(server: ComfyServer, tmp_path: Path) -> None:
    comfy = Path(sys.executable).with_name("comfy")
    # Its settings live in the home folder; the user's own must neither matter nor change.
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [comfy, "--skip-prompt", *arguments],
            env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("tracking", "disable")
    before = set(server.output.rglob("*.png"))
    run(
        "run", "--workflow", str(workflows.API_WORKFLOWS / "quick_start.json"), "--wait",
        "--host", "127.0.0.1", "--port", str(server.port), "--timeout", "240",
    )  # fmt: skip
    new = {path.name.split("_")[0] for path in set(server.output.rglob("*.png")) - before}
    assert new == {"depth", "normal"}
