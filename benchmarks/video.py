"""Stabilised video on ray-cast clips: python -m benchmarks.video [--scenes 8] [--write]

How much the depth of fixed points of a scene varies over time (standard deviation of ln depth, median over
points): with the first frame's scale for all, with the scales that were solved, and with the scales fitted to
the truth. Once with exact log-depth, normalised in every frame by itself (Eq. 7) plus
noise, and once as the embedded model predicts it.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.report import GEOMETRY, ROOT, Table, machine, section, versions
from benchmarks.scenes import add_scene_arguments, over_scenes, quantiles, sizes
from fe2e_core.geometry import fov_from_focal
from fe2e_core.temporal import DepthStabilizer, stabilize_clip
from tests.core.clips import Clip, alone, spread_of_fixed_points, true_scale, true_scales, walk
from train.evaluation import CheckpointPredictor
from train.scenes import HELD_OUT

KINDS = {
    "exact, streaming, depth alone": (False, False, False),
    "exact, streaming": (False, True, False),
    "exact, two passes": (False, True, True),
    "embedded model, streaming": (True, True, False),
    "embedded model, two passes": (True, True, True),
}
"""Name: labels of the embedded model, pictures used, two passes."""

_REASON = (
    "*best*: every frame's scale fitted to the truth. It is the nearest to the truth, not the steadiest, so a solver can lie "
    "below it; where it is no smaller than *without*, the network changes the shape of the scene from frame to frame by more "
    "than Eq. 7 changes its scale, and there is little that scales can do. Clips whose object hardly changes the range have "
    "little to gain: they make the 90th percentile of the ratio."
)


def measure(number: int, height: int, width: int, frames: int = 60, noise: float = 0.01) -> dict[str, float]:
    """Spreads of one clip, and how many cuts were seen where there is none."""
    clip = walk(HELD_OUT + number, frames, height, width)
    predictor = CheckpointPredictor(ROOT / "models" / "fe2e-nano.safetensors")
    model = torch.stack([predictor(image)[0] for image in clip.image])
    exact = clip.labels(noise, number)
    out: dict[str, float] = {}
    for name, (predicted, pictures, two_pass) in KINDS.items():
        labels = model if predicted else exact
        out |= {f"{name}/{key}": v for key, v in _spreads(clip, labels, pictures, two_pass).items()}
    return out


def _spreads(clip: Clip, labels: torch.Tensor, pictures: bool, two_pass: bool) -> dict[str, float]:
    gain, _ = true_scale(labels[0], clip.depth[0], clip.mask[0])
    state = DepthStabilizer(fov_x_degrees=fov_from_focal(float(clip.intrinsics[0, 0])))
    images = clip.image if pictures else None
    scales = stabilize_clip(labels, clip.mask, images, state, [2 * gain] * len(labels), two_pass)
    solved = torch.stack(
        [s.log_range * (x + 1) / 2 + s.log_near for s, x in zip(scales, labels, strict=True)]
    )
    without = spread_of_fixed_points(clip, alone(labels, clip))
    found = spread_of_fixed_points(clip, solved)
    return {
        "without": without,
        "solved": found,
        "best": spread_of_fixed_points(clip, true_scales(labels, clip)),
        "ratio": found / without,
        "cuts": float(sum(s.cut for s in scales)),
    }


def table(found: dict[str, list[float]]) -> Table:
    """One row for each kind of labels."""
    rows = []
    for name in KINDS:
        cells = []
        for key in ("without", "solved", "best", "ratio"):
            middle, high = quantiles(found[f"{name}/{key}"], 0.5, 0.9)
            cells.append(f"{middle:.4f} / {high:.4f}")
        rows.append([name, *cells, f"{sum(found[f'{name}/cuts']):.0f}"])
    header = ("labels", "without", "solved", "best", "solved / without", "cuts that are none")
    return Table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Flicker of depth on ray-cast clips.")
    add_scene_arguments(parser, 8, "128x96")
    arguments = parser.parse_args()
    for height, width in sizes(arguments.sizes):
        found = over_scenes(measure, arguments.scenes, height, width, arguments.workers, arguments.keep)
        section(
            f"video_{width}",
            "Video: depth of fixed points over time",
            f"{arguments.scenes} clips of 60 frames at {width}x{height}, noise 0.01 of the label; standard deviation "
            "of ln depth, median / 90th percentile over clips.\n\n" + table(found).markdown() + "\n\n" + _REASON,
            f"python -m benchmarks.video --scenes {arguments.scenes} --sizes {width}x{height} --write",
            arguments.write,
            f"{machine()}, {versions('torch')}",
            GEOMETRY,
        )


if __name__ == "__main__":
    main()
