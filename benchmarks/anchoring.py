"""Metres from sparse points with outliers: python -m benchmarks.anchoring [--scenes 100] [--write]

Eighty points of each scene, measured to 0.5 %; 30 % of them wrong by a factor whose logarithm has a standard
deviation of 1.5. The labels are rounded to BF16. Errors are the median over pixels of |depth / truth - 1|, once
with the range to be found too and once with the range known.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.report import GEOMETRY, Table, machine, section, versions
from benchmarks.scenes import add_scene_arguments, over_scenes, quantiles, sizes
from fe2e_core.anchoring import fit_anchor
from fe2e_core.geometry import depth_from_log
from tests.core.simulation import eq7_label
from train.scenes import HELD_OUT, render_scene

POINTS, ACCURACY, WRONG_BY = 80, 0.005, 1.5
SHARES = (0.0, 0.3, 0.4)


def measure(number: int, height: int, width: int) -> dict[str, float]:
    """Errors in percent by share of outliers."""
    scene = render_scene(HELD_OUT + number, height, width)
    label, log_range = eq7_label(scene.depth, scene.mask, bf16=True)
    rows, cols = torch.where(scene.mask)
    out = {}
    for share in SHARES:
        generator = torch.Generator().manual_seed(number)
        pick = torch.randint(0, len(rows), (POINTS,), generator=generator)
        x = (label[rows[pick], cols[pick]] + 1) / 2
        metres = scene.depth[rows[pick], cols[pick]]
        metres = metres * (1 + ACCURACY * torch.randn(POINTS, generator=generator))
        wrong = torch.randperm(POINTS, generator=generator)[: round(share * POINTS)]
        metres[wrong] = metres[wrong] * torch.exp(WRONG_BY * torch.randn(len(wrong), generator=generator))
        for name, fit in (
            ("range and size", fit_anchor(x, metres)),
            ("size, range known", fit_anchor(x * log_range, metres, gain=1.0)),
        ):
            gain = fit.gain if name == "range and size" else log_range
            depth = depth_from_log(label, gain, fit.offset)
            error = (depth / scene.depth - 1)[scene.mask].abs().median()
            out[f"{name}, {100 * share:.0f} % outliers"] = 100 * float(error)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Anchoring by sparse points with outliers.")
    add_scene_arguments(parser, 100)
    arguments = parser.parse_args()
    for height, width in sizes(arguments.sizes):
        found = over_scenes(measure, arguments.scenes, height, width, arguments.workers, arguments.keep)
        rows = []
        for name, values in found.items():
            middle, high = quantiles(values, 0.5, 0.9)
            within = sum(value < 1 for value in values)
            rows.append([name, f"{middle:.3f}", f"{high:.3f}", f"{max(values):.3f}", f"{within} of {len(values)}"])
        header = ("fitted", "error of depth, %, median", "90th percentile", "most", "scenes within 1 %")
        section(
            f"anchoring_{width}",
            f"Metres from sparse points, {width}x{height}",
            f"{POINTS} points a scene.\n\n" + Table(header, rows).markdown(),
            f"python -m benchmarks.anchoring --sizes {width}x{height} --scenes {arguments.scenes} --write",
            arguments.write,
            f"{machine()}, {versions('torch')}",
            GEOMETRY,
        )


if __name__ == "__main__":
    main()
