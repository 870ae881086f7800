"""Stabilised video on ray-cast clips: python -m benchmarks.video [--scenes 10] [--write]

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
from fe2e_core.temporal import DepthStabilizer, FrameScale, stabilize_clip
from tests.core.clips import Clip, alone, spread_of_fixed_points, true_scale, true_scales, walk
from train.evaluation import CheckpointPredictor
from train.scenes import HELD_OUT

STREAMING, TWO_PASSES, ALONE = "streaming", "two passes", "streaming, depth alone"
LABELS = {"exact": (ALONE, STREAMING, TWO_PASSES), "embedded model": (STREAMING, TWO_PASSES)}
CHANGES = 0.05
"""A clip counts if its exact labels, without noise and with one scale for all frames, let fixed points vary by this
much: then what enters and leaves really changes the range. No solver has a say in it."""

_REASON = (
    "*best*: every frame's scale fitted to the truth. It is the nearest to the truth, not the steadiest, so a solver can lie "
    "below it; where it is no smaller than *without*, the network changes the shape of the scene from frame to frame by more "
    "than Eq. 7 changes its scale, and there is little that scales can do. Of the clips drawn those count in which the "
    f"object really changes the range: exact labels without noise vary by at least {CHANGES} with one scale for all frames. In "
    "the others noise is most of what varies, and no scale takes it away, as their *best / without* shows. *Depth alone* has "
    "no pictures to follow: where the camera walks towards the corner of a room (clip 4), a step and a change of scale are one "
    "to it, and depth varies more than without it. Connect the pictures."
)


def exact(number: int, height: int, width: int, frames: int = 60, noise: float = 0.01) -> dict[str, float]:
    """Spreads of one clip with exact labels and noise, and how far these labels are moved without noise."""
    clip = walk(HELD_OUT + number, frames, height, width)
    moved = spread_of_fixed_points(clip, alone(clip.labels(0.0), clip))
    return {"moved": moved, **_named("exact", clip, clip.labels(noise, number))}


def embedded(number: int, height: int, width: int, frames: int = 60) -> dict[str, float]:
    """Spreads of one clip as the embedded model sees it."""
    clip = walk(HELD_OUT + number, frames, height, width)
    predictor = CheckpointPredictor(ROOT / "models" / "fe2e-nano.safetensors")
    labels = torch.stack([predictor(image)[0] for image in clip.image])
    return _named("embedded model", clip, labels)


def _named(kind: str, clip: Clip, labels: torch.Tensor) -> dict[str, float]:
    """Spreads by "kind, solver/what", and how many cuts were seen where there is none."""
    out: dict[str, float] = {}
    without = spread_of_fixed_points(clip, alone(labels, clip))
    best = spread_of_fixed_points(clip, true_scales(labels, clip))
    for name, scales in _solved(clip, labels, LABELS[kind]).items():
        solved = [s.log_range * (x + 1) / 2 + s.log_near for s, x in zip(scales, labels, strict=True)]
        found = spread_of_fixed_points(clip, torch.stack(solved))
        figures = {
            "without": without,
            "solved": found,
            "best": best,
            "ratio": found / without,
            "best ratio": best / without,
            "cuts": float(sum(s.cut for s in scales)),
        }
        out |= {f"{kind}, {name}/{key}": value for key, value in figures.items()}
    return out


def _solved(clip: Clip, labels: torch.Tensor, solvers: tuple[str, ...]) -> dict[str, list[FrameScale]]:
    """Scales of each solver; the first of the two passes is the streaming one."""
    ranges = [2 * true_scale(labels[0], clip.depth[0], clip.mask[0])[0]] * len(labels)
    fov = fov_from_focal(float(clip.intrinsics[0, 0]))
    state = DepthStabilizer(fov_x_degrees=fov)
    two_passes = stabilize_clip(labels, clip.mask, clip.image, state, ranges, two_pass=True)
    out = {}
    if ALONE in solvers:
        out[ALONE] = stabilize_clip(labels, clip.mask, None, DepthStabilizer(fov_x_degrees=fov), ranges)
    return out | {STREAMING: state.frames, TWO_PASSES: two_passes}


def table(found: dict[str, list[float]]) -> Table:
    """One row for each kind of labels and solver; for exact labels one of the clips that do not count, too."""
    counts = [moved >= CHANGES for moved in found["moved"]]
    rows = []
    for which, note in ((True, ""), (False, ", range hardly changes")):
        for name in (f"{labels}, {solver}" for labels, solvers in LABELS.items() for solver in solvers):
            if f"{name}/ratio" not in found:
                continue
            cells = []
            for key in ("without", "solved", "best", "ratio", "best ratio"):
                pairs = zip(found[f"{name}/{key}"], counts, strict=True)
                middle, high = quantiles([value for value, count in pairs if count == which], 0.5, 0.9)
                cells.append(f"{middle:.4f} / {high:.4f}")
            cuts = sum(c for c, count in zip(found[f"{name}/cuts"], counts, strict=True) if count == which)
            rows.append([name + note, str(counts.count(which)), *cells, f"{cuts:.0f}"])
        if all(counts):
            break
    header = (
        "labels",
        "clips",
        "without",
        "solved",
        "best",
        "solved / without",
        "best / without",
        "cuts that are none",
    )
    return Table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Flicker of depth on ray-cast clips.")
    add_scene_arguments(parser, 10, "128x96")
    parser.add_argument("--exact-only", action="store_true", help="without the embedded model")
    arguments = parser.parse_args()
    measures = (exact,) if arguments.exact_only else (exact, embedded)
    for height, width in sizes(arguments.sizes):
        found = {}
        for measure in measures:
            found |= over_scenes(measure, arguments.scenes, height, width, arguments.workers, arguments.keep)
        section(
            f"video_{width}",
            "Video: depth of fixed points over time",
            f"{arguments.scenes} clips drawn, 60 frames at {width}x{height}, noise 0.01 of the label; standard deviation "
            "of ln depth, median / 90th percentile over clips.\n\n"
            + table(found).markdown()
            + "\n\n"
            + _REASON,
            f"python -m benchmarks.video --scenes {arguments.scenes} --sizes {width}x{height}"
            + (" --exact-only" if arguments.exact_only else "")
            + " --write",
            arguments.write,
            f"{machine()}, {versions('torch')}",
            GEOMETRY,
        )


if __name__ == "__main__":
    main()
