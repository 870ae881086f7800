"""The shipped model is as good as its card says, measured again on scenes it has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.folding import is_folded
from fe2e_core.tensorfile import TensorFile
from train.backend import encode, load_autoencoder
from train.evaluation import Comparison, compare
from train.pool import label_scene
from train.scenes import HELD_OUT, render_scene
from train.vae import as_pictures

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "fe2e-nano.safetensors"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    # A tenth of the scenes of the card, so that it takes seconds: the card's own ratios are `train score-nano`'s.
    return compare(MODEL, scenes=48, training_scenes=200, mixture="second")


def test_much_better_than_the_best_blind_guess_on_held_out_scenes(comparison: Comparison):
    assert comparison.abs_rel_ratio <= 0.45, comparison.table()
    assert comparison.angle_ratio <= 0.4, comparison.table()
    assert comparison.model.delta1 > 1.3 * comparison.guess.delta1


def test_better_than_a_guess_on_a_kind_of_scene_that_it_was_not_taught():
    found = compare(MODEL, scenes=12, training_scenes=60, mixture="unseen")
    assert found.abs_rel_ratio <= 0.7, found.table()
    assert found.angle_ratio <= 0.75, found.table()


@pytest.mark.parametrize(("file", "mixture"), [("fe2e-nano.json", "second"), ("fe2e-nano-unseen.json", "unseen")])
def test_card_numbers_are_the_scored_ones(file: str, mixture: str):
    scored = json.loads((MODELS / file).read_text(encoding="utf-8"))
    assert scored["scenes"] == 500 and scored["first_seed"] == HELD_OUT and scored["mixture"] == mixture
    card = (MODELS / "README.md").read_text(encoding="utf-8")
    for kind in ("model", "guess"):
        assert f"{scored[kind]['abs_rel']:.4f}" in card
        assert f"{scored[kind]['angle']:.2f}" in card


def test_file_is_small_folded_and_says_what_it_is():
    assert MODEL.stat().st_size <= 24_000_000
    with TensorFile(MODEL, "checkpoint") as file:
        checkpoint = read_checkpoint(file)
        assert is_folded(checkpoint.transformer)
        assert checkpoint.info.name == "fe2e-nano" and "demonstration" in checkpoint.info.notice
        assert checkpoint.info.license == "Apache-2.0"
        assert checkpoint.info.height % 16 == 0 and checkpoint.info.width % 16 == 0


def test_latents_lie_on_the_flux_scale():
    with TensorFile(MODEL, "checkpoint") as file:
        checkpoint = read_checkpoint(file)
        autoencoder = load_autoencoder(checkpoint)
        size = (checkpoint.info.height, checkpoint.info.width)
    pictures = torch.cat([torch.cat(as_pictures(label_scene(render_scene(HELD_OUT + n, *size, mixture="second")))) for n in range(4)])
    with torch.inference_mode():
        latents = encode(autoencoder, pictures)
    assert float(latents.mean().abs()) < 0.25
    assert float(latents.std()) == pytest.approx(1.0, abs=0.25)
