"""Stabilised video on ray-cast clips: python -m benchmarks.video [--clips 8] [--frames 60] [--write]

How much the depth of fixed points of a scene varies over time (standard deviation of ln depth, median over
points): with the first frame's scale for all, with the scales that were solved, and with the scales fitted to
the truth, which no solver can beat. Once with exact log-depth, normalised in every frame by itself (Eq. 7) plus
noise, and once as the embedded model predicts it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.report import ROOT, Table, machine, section, versions
from benchmarks.scenes import quantiles
from fe2e_core.geometry import fov_from_focal
from fe2e_core.temporal import DepthStabilizer, stabilize_clip
from tests.core.clips import Clip, alone, spread_of_fixed_points, true_scale, true_scales, walk
from train.evaluation import CheckpointPredictor
from train.scenes import HELD_OUT

HEIGHT, WIDTH = 96, 128
Labels = Callable[[Clip], torch.Tensor]


def measure(clip: Clip, labels: torch.Tensor, pictures: bool, two_pass: bool) -> dict[str, float]:
    """Spreads of one clip, and how many cuts were seen where there is none."""
    gain, _ = true_scale(labels[0], clip.depth[0], clip.mask[0])
    state = DepthStabilizer(fov_x_degrees=fov_from_focal(float(clip.intrinsics[0, 0])))
    scales = stabilize_clip(
        labels,
        clip.mask,
        clip.image if pictures else None,
        state,
        [2 * gain] * len(labels),
        two_pass,
    )
    solved = torch.stack(
        [s.log_range * (x + 1) / 2 + s.log_near for s, x in zip(scales, labels, strict=True)]
    )
    spread = {
        "without": spread_of_fixed_points(clip, alone(labels, clip)),
        "solved": spread_of_fixed_points(clip, solved),
        "best": spread_of_fixed_points(clip, true_scales(labels, clip)),
    }
    return {
        **spread,
        "ratio": spread["solved"] / spread["without"],
        "cuts": float(sum(s.cut for s in scales)),
    }


def predicted(clip: Clip, predictor: CheckpointPredictor) -> torch.Tensor:
    return torch.stack([predictor(image)[0] for image in clip.image])


def main() -> None:
    parser = argparse.ArgumentParser(description="Flicker of depth on ray-cast clips.")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.01, help="of the label, standard deviation")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    predictor = CheckpointPredictor(ROOT / "models" / "fe2e-nano.safetensors")
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(arguments.clips):
        clip = walk(HELD_OUT + number, arguments.frames, HEIGHT, WIDTH)
        exact, model = clip.labels(arguments.noise, number), predicted(clip, predictor)
        for name, labels, pictures, two_pass in (
            ("exact, streaming, depth alone", exact, False, False),
            ("exact, streaming", exact, True, False),
            ("exact, two passes", exact, True, True),
            ("embedded model, streaming", model, True, False),
            ("embedded model, two passes", model, True, True),
        ):
            found.setdefault(name, []).append(measure(clip, labels, pictures, two_pass))
    rows = []
    for name, measured in found.items():
        cells = []
        for key in ("without", "solved", "best", "ratio"):
            middle, high = quantiles([m[key] for m in measured], 0.5, 0.9)
            cells.append(f"{middle:.4f} / {high:.4f}" if key != "ratio" else f"{middle:.3f} / {high:.3f}")
        rows.append([name, *cells, f"{sum(m['cuts'] for m in measured):.0f}"])
    header = ("labels", "without", "solved", "best", "solved / without", "cuts that are none")
    section(
        "video",
        "Video: depth of fixed points over time",
        f"{arguments.clips} clips of {arguments.frames} frames at {WIDTH}x{HEIGHT}, noise {arguments.noise:g}; "
        "standard deviation of ln depth, median / 90th percentile over clips.\n\n"
        + Table(header, rows).markdown(),
        f"python -m benchmarks.video --clips {arguments.clips} --frames {arguments.frames} --write",
        arguments.write,
        f"{machine()}, {versions('torch')}",
    )


if __name__ == "__main__":
    main()
