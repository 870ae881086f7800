"""Every verb explains itself, and with `--dry-run` says what it would do and does nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.harness import tiny
from train.__main__ import VERBS, main
from train.memory_report import memory_note
from train.recipe import load_recipe

NANO = str(Path(__file__).parents[2] / "models" / "fe2e-nano.safetensors")
LORA = """
name = "tiny"
out = "{out}"
[base]
transformer = "{transformer}"
vae = "{vae}"
prompt_cache = "nowhere.npz"
[training]
steps = 2
[data]
batch = 1
[[data.source]]
kind = "procedural"
height = 32
width = 48
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model in parts, a picture, a run and its configuration."""
    folder = tmp_path_factory.mktemp("place")
    tiny.write_fe2e_parts(folder)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(folder / "photo.png")
    (folder / "run").mkdir()
    (folder / "run" / "losses.jsonl").write_text(json.dumps({"step": 1, "depth": 1.0, "normal": 2.0}) + "\n")
    for encoder in ("text_encoder", "text_encoder_2"):
        (folder / "flux" / encoder).mkdir(parents=True)
        (folder / "flux" / encoder / "config.json").write_text("{}")
    (folder / "diode_val.tar").write_bytes(b"")
    parts = {"transformer": folder / "diffusion_models" / tiny.TRANSFORMER, "vae": folder / "vae" / tiny.VAE}
    (folder / "run.toml").write_text(LORA.format(out=folder / "out", **parts))
    return folder


def dry(place: Path) -> dict[str, list[str]]:
    """A command of each verb, and what it has to say."""
    transformer, vae = str(place / "diffusion_models" / tiny.TRANSFORMER), str(place / "vae" / tiny.VAE)
    config, out = str(place / "run.toml"), str(place / "new")
    cache, lora = str(place / "fe2e" / tiny.PROMPT_CACHE), str(place / "loras" / tiny.LORA)
    return {
        "fetch": ["--models-dir", str(place)],
        "pack": ["--transformer", transformer, "--vae", vae, "--prompt-cache", cache, "--lora", lora, "--out", out],
        "inspect": ["--config", config],
        "memory": ["--config", config],
        "empty-prompt": ["--flux", str(place / "flux"), "--out", f"{out}.safetensors"],
        "lora": ["--config", config],
        "curves": [str(place / "run"), "--output", out],
        "convert": [lora, out, "--to", "diffusers"],
        "predict": [NANO, str(place / "photo.png"), "--output", out],
        "evaluate": ["--data", str(place), "--checkpoint", NANO, "--out", out],
        "thesis": [],
        "nano": ["--out", out, "--work", out],
        "online": ["--out", out, "--work", out],
        "score-nano": [NANO, "--scenes", "3"],
    }


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_help_and_dry_run(verb, place, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--dry-run" in text
    assert "--help" in text
    before = sorted(place.rglob("*"))
    assert main([verb, *dry(place)[verb], "--dry-run"]) == 0
    assert capsys.readouterr().out.strip(), "it says what it would do"
    assert sorted(place.rglob("*")) == before


def test_what_pack_announces_is_what_it_writes(place, tmp_path, capsys):
    for dtype in ("bf16", "fp8_scaled"):
        command = ["pack", *dry(place)["pack"][:-1], str(tmp_path / dtype), "--dtype", dtype]
        assert main([*command, "--dry-run"]) == 0
        announced = capsys.readouterr().out
        assert main([*command, "--no-digests"]) == 0
        capsys.readouterr()
        size = sum(t.numel() * t.element_size() for t in load_file(tmp_path / dtype).values())
        assert f"would be {size / 2**30:.2f} GiB, {dtype}" in announced


def test_a_run_announces_its_memory_and_what_is_missing(place, capsys):
    assert main(["lora", "--config", str(place / "run.toml"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "tiny: 2 steps of 1 pictures" in text
    assert "[base] prompt_cache: there is no 'nowhere.npz' yet" in text
    assert "estimated GPU memory: 1.1 GiB" in text
    config = load_recipe(str(place / "run.toml"))
    assert "Ways to need less" not in memory_note(config, 1, 24 * 2**30)
    assert "this GPU has 0.5 GiB. Ways to need less: [base] fold = true" in memory_note(config, 1, 2**29)
