"""Confidence and refinement on ray-cast scenes: python -m benchmarks.scene_operators [--scenes 100] [--write]

Confidence: area under the ROC curve for four kinds of injected damage, BF16 labels, normals 5 degrees off
(half of it smooth over 64 pixels). Refinement: error of ln depth (mean, up to one scale) after against
before, for a smooth error plus noise at edges, beside a bilateral filter whose two widths are chosen for each
scene by looking at the answer, and on clean depth. The filter is slow and looked at in every fifth scene.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.report import GEOMETRY, Table, machine, section, versions
from benchmarks.scenes import add_scene_arguments, over_scenes, quantiles, sizes
from fe2e_core.confidence import agreement
from fe2e_core.refinement import refine_depth
from tests.core.simulation import bilateral, damage, eq7_label, noisy_normals, roc_area, spoiled_depth
from train.scenes import HELD_OUT, Scene, render_scene

DAMAGES = ("shift", "tilt", "edges", "relief")
SPACES, TONES = (1.0, 2.0, 4.0), (0.02, 0.06, 0.15)  # pixels; parts of the log range
_FILTERED = 5
NOISY, FILTER = "normals 5 degrees off", "bilateral filter, tuned on the answer"


def confidence_areas(scene: Scene, seed: int) -> dict[str, float]:
    """ROC area for each kind of damage; kinds that leave almost no trace in this scene are missing."""
    logs = torch.log(scene.depth.clamp_min(1e-3))
    _, log_range = eq7_label(scene.depth, scene.mask)
    normal = noisy_normals(scene.normal, 5.0, seed)
    out = {}
    for kind in DAMAGES:
        broken, where = damage(kind, logs, scene.mask, log_range, seed)
        if int(where.sum()) < 50:
            continue
        label, seen_range = eq7_label(broken.exp(), scene.mask, bf16=True)
        depth = torch.exp(label * seen_range / 2)
        score = agreement(depth[None], normal[None], scene.mask[None], scene.intrinsics[None])[0]
        out[f"area/{kind}"] = roc_area(-score[scene.mask], where[scene.mask])
    return out


def _error(depth: torch.Tensor, scene: Scene) -> float:
    """Mean |error of ln depth| up to one scale."""
    miss = (torch.log(depth) - torch.log(scene.depth))[scene.mask]
    return float((miss - miss.median()).abs().mean())


def refinement_errors(scene: Scene, seed: int) -> dict[str, float]:
    """Errors of ln depth after over before, and on clean depth, for exact and for noisy normals."""

    def refined(depth: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        return refine_depth(depth[None], normal[None], scene.mask[None], scene.intrinsics[None])[0]

    depth = spoiled_depth(scene.depth, scene.mask, seed)
    before = _error(depth, scene)
    out = {}
    for name, normal in (("exact normals", scene.normal), (NOISY, noisy_normals(scene.normal, 5.0, seed))):
        out[f"ratio/{name}"] = _error(refined(depth, normal), scene) / before
        out[f"clean/{name}"] = 100 * _error(refined(scene.depth, normal), scene)
    return out


def filter_error(scene: Scene, seed: int) -> float:
    """Error of ln depth after over before, of the bilateral filter with the best of its widths."""
    depth = spoiled_depth(scene.depth, scene.mask, seed)
    _, log_range = eq7_label(scene.depth, scene.mask)
    logs = torch.log(depth.clamp_min(1e-3))
    tried = (bilateral(logs, scene.mask, s, t * log_range) for s in SPACES for t in TONES)
    return min(_error(d, scene) for d in tried) / _error(depth, scene)


def confidence(number: int, height: int, width: int) -> dict[str, float]:
    """ROC areas of one scene."""
    return confidence_areas(render_scene(HELD_OUT + number, height, width), number)


def refinement(number: int, height: int, width: int) -> dict[str, float]:
    """Errors of refinement of one scene."""
    return refinement_errors(render_scene(HELD_OUT + number, height, width), number)


def bilateral_filter(number: int, height: int, width: int) -> dict[str, float]:
    """Error of the tuned filter, in every fifth scene."""
    if number % _FILTERED:
        return {}
    return {f"ratio/{FILTER}": filter_error(render_scene(HELD_OUT + number, height, width), number)}


def _low(values: list[float]) -> list[str]:
    """Where larger is better, the 10th percentile is the bad end."""
    middle, low = quantiles(values, 0.5, 0.1)
    return [f"{middle:.3f}", f"{low:.3f}", f"{min(values):.3f}", str(len(values))]


def _high(values: list[float], digits: int) -> list[str]:
    middle, high = quantiles(values, 0.5, 0.9)
    return [f"{middle:.{digits}f}", f"{high:.{digits}f}", f"{max(values):.{digits}f}", str(len(values))]


def tables(found: dict[str, list[float]]) -> str:
    """Markdown of the three tables."""
    areas = [[kind, *_low(found[f"area/{kind}"])] for kind in DAMAGES]
    named = {k.split("/", 1)[1]: v for k, v in found.items() if k.startswith("ratio/")}
    ratios = [[name, *_high(values, 3)] for name, values in named.items()]
    clean = [[k.split("/", 1)[1], *_high(v, 3)] for k, v in found.items() if k.startswith("clean/")]
    pairs = zip(named[NOISY][::_FILTERED], named[FILTER], strict=True)
    wins = [ours < theirs for ours, theirs in pairs]
    return "\n\n".join(
        [
            Table(("confidence, ROC area", "median", "10th percentile", "least", "scenes"), areas).markdown(),
            Table(
                ("refinement, error after / before", "median", "90th percentile", "most", "scenes"), ratios
            ).markdown(),
            f"Refinement with normals 5 degrees off is better than the tuned filter in {sum(wins):.0f} of {len(wins)} "
            "scenes.",
            Table(
                ("refinement of clean depth, error in %", "median", "90th percentile", "most", "scenes"),
                clean,
            ).markdown(),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Confidence and refinement on ray-cast scenes.")
    add_scene_arguments(parser, 100)
    arguments = parser.parse_args()
    for height, width in sizes(arguments.sizes):
        found = {}
        for measure in (confidence, refinement, bilateral_filter):
            found |= over_scenes(measure, arguments.scenes, height, width, arguments.workers, arguments.keep)
        section(
            f"operators_{width}",
            f"Confidence and refinement, {width}x{height}",
            tables(found),
            f"python -m benchmarks.scene_operators --sizes {width}x{height} --scenes {arguments.scenes} --write",
            arguments.write,
            f"{machine()}, {versions('torch')}",
            GEOMETRY,
        )


if __name__ == "__main__":
    main()
