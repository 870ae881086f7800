"""Confidence and refinement on ray-cast scenes: python -m benchmarks.scene_operators [--scenes 20] [--sizes
...]

Confidence: area under the ROC curve for four kinds of injected damage, BF16 labels, normals 5 degrees off
(half of it smooth over 64 pixels). Refinement: error of ln depth (mean, up to one scale) after against
before, for a smooth error plus noise at edges, and on clean depth. Seconds are process time on however many
threads torch has.
"""

from __future__ import annotations

import argparse
import time

import torch

from fe2e_core.confidence import agreement
from fe2e_core.refinement import refine_depth
from tests.core.simulation import damage, eq7_label, noisy_normals, roc_area, spoiled_depth
from train.scenes import HELD_OUT, Scene, render_scene


def confidence_areas(scene: Scene, seed: int) -> dict[str, float]:
    """ROC area for each kind of damage; kinds that leave almost no trace in this scene are missing."""
    logs = torch.log(scene.depth.clamp_min(1e-3))
    _, log_range = eq7_label(scene.depth, scene.mask)
    normal = noisy_normals(scene.normal, 5.0, seed)
    out = {}
    for kind in ("shift", "tilt", "edges", "relief"):
        broken, where = damage(kind, logs, scene.mask, log_range, seed)
        if int(where.sum()) < 50:
            continue
        label, seen_range = eq7_label(broken.exp(), scene.mask, bf16=True)
        depth = torch.exp(label * seen_range / 2)
        score = agreement(depth[None], normal[None], scene.mask[None], scene.intrinsics[None])[0]
        out[f"confidence, {kind}: ROC area"] = roc_area(-score[scene.mask], where[scene.mask])
    return out


def refinement_errors(scene: Scene, seed: int) -> dict[str, float]:
    """Ratio of errors after and before, and the error made on clean depth, for exact and for noisy normals."""

    def error(depth: torch.Tensor) -> float:
        miss = (torch.log(depth) - torch.log(scene.depth))[scene.mask]
        return float((miss - miss.median()).abs().mean())

    def refined(depth: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        return refine_depth(depth[None], normal[None], scene.mask[None], scene.intrinsics[None])[0]

    depth = spoiled_depth(scene.depth, scene.mask, seed)
    out = {}
    for name, normal in (
        ("exact normals", scene.normal),
        ("5 degrees", noisy_normals(scene.normal, 5.0, seed)),
    ):
        start = time.perf_counter()
        result = refined(depth, normal)
        out["refinement, seconds"] = time.perf_counter() - start
        out[f"refinement, {name}: error after / before"] = error(result) / error(depth)
        out[f"refinement, {name}: error on clean depth, %"] = 100 * error(refined(scene.depth, normal))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Confidence and refinement on ray-cast scenes.")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--sizes", default="640x480,1024x768", help="width x height, separated by commas")
    arguments = parser.parse_args()
    print("| size | measure | median | 90th percentile | 10th percentile |")
    print("|---|---|---|---|---|")
    for size in arguments.sizes.split(","):
        width, height = (int(n) for n in size.split("x"))
        table: dict[str, list[float]] = {}
        for number in range(arguments.scenes):
            scene = render_scene(HELD_OUT + number, height, width)
            for name, value in {
                **confidence_areas(scene, number),
                **refinement_errors(scene, number),
            }.items():
                table.setdefault(name, []).append(value)
        for name, values in table.items():
            v = torch.tensor(values)
            middle, high, low = (float(v.quantile(q)) for q in (0.5, 0.9, 0.1))
            print(f"| {size} | {name} | {middle:.3f} | {high:.3f} | {low:.3f} |", flush=True)


if __name__ == "__main__":
    main()
