"""Every file of train/configs/ starts a run: with tiny weights under the names it gives, and miniature datasets in the
published formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.harness import tiny
from tests.harness.golden import dit_weights, draw
from tests.train.miniature import (
    pinhole_rays,
    plane_and_sphere,
    write_hypersim_frame,
    write_hypersim_tables,
    write_vkitti_frame,
)
from tests.train.test_recipes import CONFIGS, ROWS
from train.__main__ import main
from train.convert import read_lora
from train.journal import read_journal
from train.recipe import load_recipe

HEIGHT, WIDTH = 32, 48
CAMERA = np.diag([0.6, 0.4, -1.0])
SIZE = f"height = {HEIGHT}\nwidth = {WIDTH}"
#: What a run of seconds needs: small pictures, one step, a block that the tiny network has.
CHANGES = {'kind = "hypersim"': f'kind = "hypersim"\n{SIZE}', 'kind = "vkitti"': f'kind = "vkitti"\n{SIZE}',
           "workers = 4": "workers = 0", "epochs = 30.0": "steps = 1\nwarmup = 0"}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with everything that the files name."""
    folder = tmp_path_factory.mktemp("place")
    tiny.write_fe2e_parts(folder / "models")
    flux = dit_weights(tiny.TINY, connector=False)
    hidden = tiny.TINY.hidden
    for name, shape in {"in_layer.weight": (hidden, 256), "in_layer.bias": (hidden,), "out_layer.weight": (hidden, hidden),
                        "out_layer.bias": (hidden,)}.items():  # fmt: skip
        flux[f"guidance_in.{name}"] = draw(f"guidance_in.{name}", shape, 1)
    save_file(flux, folder / "models" / "diffusion_models" / "flux1-dev.safetensors")
    prompt = {"context": torch.zeros(1, 4, tiny.TINY.ctx), "pooled": torch.zeros(1, 768)}
    save_file(prompt, folder / "models" / "fe2e" / "flux1-empty-prompt.safetensors")
    rays = pinhole_rays(HEIGHT, WIDTH, 40.0, 40.0, 23.5, 15.5)
    entity = np.ones((HEIGHT, WIDTH))
    for frame in (0, 1):
        truth = plane_and_sphere(rays, np.array([0.3, -0.4, 1.0]), 4.0 + frame, np.array([0.3, 0.2, 2.5 + frame]), 0.7)
        colour = np.random.default_rng(frame).uniform(0, 1, (HEIGHT, WIDTH, 3))
        write_hypersim_frame(folder / "data" / "hypersim", "ai_001_001", frame, np.linalg.norm(truth.points, axis=-1),
                             truth.normal * [1, -1, -1], colour, entity)  # fmt: skip
        write_vkitti_frame(folder / "data" / "vkitti", "Scene02", "clone", frame, truth.depth, truth.sky)
    rows = [("ai_001_001", frame, True, "train") for frame in (0, 1)]
    write_hypersim_tables(folder / "data" / "hypersim", rows, {"ai_001_001": CAMERA})
    return folder


@pytest.mark.parametrize("name", [*ROWS, "fe2e_24gb"])
def test_it_trains_a_step_and_writes_a_lora(name, place, monkeypatch, capsys):
    text = (CONFIGS / f"{name}.toml").read_text(encoding="utf-8")
    for before, after in CHANGES.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    (place / f"{name}.toml").write_text(text.replace("block = 9", "block = 1"), encoding="utf-8")
    monkeypatch.chdir(place)
    assert main(["lora", "--config", f"{name}.toml"]) == 0
    assert "step 1/1" in capsys.readouterr().out
    config = load_recipe(f"{name}.toml")
    (row,) = read_journal(config.folder / "losses.jsonl")
    assert row["depth"] > 0
    assert (row["normal"] > 0) == config.objective.joint
    assert (row["dispersive"] < 0) == (config.dispersive.weight > 0)
    modules, metadata = read_lora(config.folder / f"{name}.safetensors")
    blocks = 10 * tiny.TINY.depth + 3 * tiny.TINY.single
    assert len(modules) == blocks
    assert metadata["ss_network_dim"] == "64"
    assert metadata["fe2e.quantization"] == config.objective.quantization
