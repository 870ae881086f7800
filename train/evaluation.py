"""How good a checkpoint is on procedural scenes it has never seen, next to a guess that ignores the picture.

The guess is the per-pixel mean of training labels and normals: the best one can do without looking.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.geometry import normal_from_network
from fe2e_core.metrics import abs_rel, align_log, angular_error_deg, delta
from fe2e_core.packing import predict_latents
from fe2e_core.tensorfile import TensorFile
from train.backend import decode, encode, load_autoencoder, load_transformer, velocity_of
from train.pool import label_scene
from train.scenes import HELD_OUT, Scene, render_scene

Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Image (H,W,3) in [0,1] -> (log-depth label (H,W) in [-1,1], unit normals (H,W,3) in OpenCV axes)."""


class CheckpointPredictor:
    """An FE2E checkpoint run through diffusers in float32. `size` is its trained picture size (height, width)."""

    def __init__(self, path: str | Path):
        with TensorFile(path, "checkpoint") as file:
            checkpoint = read_checkpoint(file)
            self.size = (checkpoint.info.height, checkpoint.info.width)
            self.transformer = load_transformer(checkpoint)
            self.autoencoder = load_autoencoder(checkpoint)
            stored = checkpoint.conditioning
            self.conditioning = Conditioning(stored.context.float(), stored.pooled.float())

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Predictor`; sides must be multiples of 16."""
        with torch.inference_mode():
            latent = encode(self.autoencoder, image.permute(2, 0, 1)[None] * 2 - 1)
            depth, normal = predict_latents(velocity_of(self.transformer), latent, self.conditioning)
            pictures = decode(self.autoencoder, torch.cat([depth, normal])).clamp(-1, 1)
        return pictures[0].mean(0), normal_from_network(pictures[1].permute(1, 2, 0))


class MeanPredictor:
    """The per-pixel mean of labels and normals of a mixture's scenes, whatever the image. One size only."""

    def __init__(self, size: tuple[int, int], scenes: int, first_seed: int = 0, mixture: str = "first"):
        labels, normals, counts = torch.zeros(size), torch.zeros(3, *size), torch.zeros(size)
        for seed in range(first_seed, first_seed + scenes):
            sample = label_scene(render_scene(seed, *size, mixture=mixture))
            valid = sample.valid[0].float()
            labels += sample.label[0] * valid
            normals += sample.normal[0] * valid
            counts += valid
        self.label = labels / counts.clamp_min(1)
        self.normal = normal_from_network(normals.permute(1, 2, 0))

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.label, self.normal


@dataclass(frozen=True)
class SceneScore:
    """AbsRel and delta1 after FE2E's logarithmic alignment, and the mean angle in degrees, over valid pixels."""

    abs_rel: float
    delta1: float
    angle: float


def score_scene(predictor: Predictor, scene: Scene) -> SceneScore:
    """Score one procedural scene."""
    label, normal = predictor(scene.image)
    aligned = align_log(label, scene.depth, scene.mask)
    angle = angular_error_deg(normal, scene.normal)[scene.mask]
    return SceneScore(
        abs_rel(aligned.depth, scene.depth, scene.mask),
        delta(aligned.depth, scene.depth, scene.mask),
        float(angle.mean()),
    )


@dataclass(frozen=True)
class Comparison:
    """Means over held-out scenes of a checkpoint and of the image-independent guess, and their ratios."""

    checkpoint: str
    mixture: str
    scenes: int
    first_seed: int
    height: int
    width: int
    training_scenes: int
    model: SceneScore
    guess: SceneScore
    abs_rel_ratio: float
    angle_ratio: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """Markdown, both columns."""
        rows = [
            ("AbsRel (log-aligned), lower is better", "abs_rel", ".4f"),
            ("delta1, higher is better", "delta1", ".4f"),
            ("mean angular error, degrees", "angle", ".2f"),
        ]
        lines = ["| | model | image-independent guess | ratio |", "|---|---|---|---|"]
        for title, name, form in rows:
            a, b = getattr(self.model, name), getattr(self.guess, name)
            lines.append(f"| {title} | {a:{form}} | {b:{form}} | {a / b:.3f} |")
        return "\n".join(lines)


def _mean(scores: list[SceneScore]) -> SceneScore:
    count = len(scores)
    return SceneScore(
        sum(s.abs_rel for s in scores) / count,
        sum(s.delta1 for s in scores) / count,
        sum(s.angle for s in scores) / count,
    )


def compare(
    path: str | Path,
    scenes: int = 200,
    training_scenes: int = 1000,
    size: tuple[int, int] | None = None,
    mixture: str = "first",
    on_step: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Score the checkpoint at `path` on the first `scenes` held-out seeds of a mixture (`train.mixtures.MIXTURES`), at its
    trained size unless one is given.

    `training_scenes` is over how many other scenes of the same mixture the guess is averaged: the best guess for it, also
    where the checkpoint has never been trained on it. Raises what reading a checkpoint raises.
    """
    predictor = CheckpointPredictor(path)
    size = size or predictor.size
    guess = MeanPredictor(size, training_scenes, mixture=mixture)
    model_scores, guess_scores = [], []
    for number in range(scenes):
        scene = render_scene(HELD_OUT + number, *size, mixture=mixture)
        model_scores.append(score_scene(predictor, scene))
        guess_scores.append(score_scene(guess, scene))
        if on_step is not None:
            on_step(number + 1, scenes)
    model, blind = _mean(model_scores), _mean(guess_scores)
    return Comparison(
        checkpoint=Path(path).name,
        mixture=mixture,
        scenes=scenes,
        first_seed=HELD_OUT,
        height=size[0],
        width=size[1],
        training_scenes=training_scenes,
        model=model,
        guess=blind,
        abs_rel_ratio=model.abs_rel / blind.abs_rel,
        angle_ratio=model.angle / blind.angle,
    )


