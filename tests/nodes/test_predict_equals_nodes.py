"""`train predict` and the nodes give the same geometry for the same picture file, to 1e-3, with the embedded model."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch
from PIL import Image

from fe2e_core.npz import read_npz
from tests.harness.inprocess import pack_module, run_node
from train.__main__ import main
from train.scenes import HELD_OUT, render_scene

MODEL = Path(__file__).parents[2] / "models" / "fe2e-nano.safetensors"


@pytest.fixture(scope="module")
def model():
    return pack_module("nodes.loading").load_checkpoint(str(MODEL), None, 1.0, "fp32")


@pytest.fixture(scope="module")
def pictures() -> list[Path]:
    """A photograph, a scene of odd sides, a strip that has to be padded; in ComfyUI's input folder."""
    from skimage import data

    folder = Path(folder_paths.get_input_directory())
    scene = render_scene(HELD_OUT + 5, 131, 187).image.mul(255).round().byte().numpy()
    made = {
        "photograph": Image.fromarray(data.astronaut()).resize((300, 300)),
        "odd": Image.fromarray(scene),
        "strip": Image.fromarray(scene[:21]),
    }
    for name, image in made.items():
        image.save(folder / f"predict-{name}.png")
    return [folder / f"predict-{name}.png" for name in made]


@pytest.mark.parametrize(("size", "node_size", "which"), [
    (("trained",), {"size": "trained size"}, slice(0, 3)),
    (("native",), {"size": "native size"}, slice(2, 3)),
    (("longest_side", "--longest-side", "112"), {"size": "longest side", "longest_side": 112}, slice(0, 1)),
    (("tiled", "--detail", "1.3"), {"size": "tiled (large pictures)", "detail": 1.3, "overlap": 0.25}, slice(1, 2)),
])
def test_the_command_and_the_nodes_agree(model, pictures, size, node_size, which, tmp_path) -> None:
    import nodes  # ComfyUI's

    used = pictures[which]
    assert main(["predict", str(MODEL), *map(str, used), "--output", str(tmp_path), "--cpu", "--with-image",
                 "--size", *size]) == 0
    for path in used:
        image, _ = nodes.LoadImage().load_image(path.name)
        geometry, _, _ = run_node(pack_module("nodes.estimation").FE2EEstimate, fe2e_model=model, image=image,
                                  size=node_size)
        ours = read_npz(tmp_path / f"{path.stem}.npz")
        assert ours["log_depth"].shape == geometry["log_depth"].shape == image.shape[:3]
        for key in ("log_depth", "normal", "image"):
            far = float((ours[key] - geometry[key]).abs().max())
            assert far <= 1e-3, f"{path.name}: {key} differs by {far}"
        assert torch.equal(ours["mask"], geometry["mask"])
