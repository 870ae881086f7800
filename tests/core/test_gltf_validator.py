"""Our GLB files through the validator of the Khronos Group (npm package gltf-validator)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fe2e_core.gltf import encode_texture, write_glb
from fe2e_core.mesh import grid_mesh
from train.scenes import render_scene

VERSION = "2.0.0-dev.3.10"
PLACE = Path(__file__).resolve().parents[2] / ".venv" / "gltf-validator"
SCRIPT = """
const validator = require("gltf-validator"), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])), {maxIssues: 50})
  .then(report => console.log(JSON.stringify(report)));
"""


@pytest.fixture(scope="module")
def validate():
    """Runs the validator; it is fetched once into the test environment."""
    if not shutil.which("node") or not shutil.which("npm"):
        if os.environ.get("FE2E_REQUIRE_BROWSER"):
            pytest.fail("node and npm are missing; .ci/run installs them")
        pytest.skip("node and npm are not installed")
    if not (PLACE / "node_modules" / "gltf-validator" / "package.json").exists():
        PLACE.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(PLACE)]
        subprocess.run([*command, f"gltf-validator@{VERSION}"], check=True, timeout=120, capture_output=True)

    def run(path: Path) -> dict:
        environment = {**os.environ, "NODE_PATH": str(PLACE / "node_modules")}
        done = subprocess.run(
            ["node", "-e", SCRIPT, str(path)], check=True, timeout=60, capture_output=True, env=environment
        )
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize(
    ("texture", "unlit", "camera", "inline"),
    [("png", False, True, False), ("jpeg", True, True, True), (None, False, False, False)],
)
def test_no_errors_and_normals_are_there(validate, tmp_path, texture, unlit, camera, inline):
    scene = render_scene(11, 96, 128, "room")
    mesh = grid_mesh(scene.depth, scene.intrinsics, scene.normal, scene.mask)
    data = write_glb(
        mesh,
        encode_texture(scene.image, texture) if texture else None,
        intrinsics=scene.intrinsics if camera else None,
        aspect=128 / 96,
        unlit=unlit,
        inline=inline,
    )
    path = tmp_path / "room.glb"
    path.write_bytes(data)
    report = validate(path)
    issues = report["issues"]
    assert issues["numErrors"] == 0, issues["messages"]
    warnings = {message["code"] for message in issues["messages"] if message["severity"] == 1}
    assert warnings == ({"DATA_URI_GLB"} if inline else set()), "only what inline is for"
    info = report["info"]
    assert info["totalVertexCount"] == len(mesh.vertices)
    assert info["totalTriangleCount"] == len(mesh.faces)
    assert info["hasTextures"] == bool(texture)


def test_the_validator_does_find_errors(validate, tmp_path):
    """Normals of length two are an error; a validator that says nothing would prove nothing."""
    scene = render_scene(11, 24, 32, "room")
    mesh = grid_mesh(scene.depth, scene.intrinsics, scene.normal, scene.mask)
    object.__setattr__(mesh, "normals", mesh.normals * 2)
    path = tmp_path / "bad.glb"
    path.write_bytes(write_glb(mesh))
    assert validate(path)["issues"]["numErrors"] > 0
    assert torch.isfinite(mesh.normals).all()
