"""Calibration on ray-cast scenes: python -m benchmarks.calibration [--scenes 100] [--sizes 640x480,1024x768]

Prints median and 90th percentile of the errors of field of view (degrees) and log range (percent) for each
kind of input, over held-out scenes; scenes that are called undetermined are counted and left out of the
percentiles.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from fe2e_core.calibration import CalibrationOptions, calibrate
from fe2e_core.geometry import fov_from_focal
from tests.core.simulation import eq7_label, noisy_normals
from train.scenes import HELD_OUT, render_scene

# name: BF16 labels, degrees of normal error (half independent, half smooth over 64 pixels), field of view
# given
KINDS = {
    "exact": (False, 0.0, False),
    "bf16": (True, 0.0, False),
    "bf16 + 2.5 deg": (True, 2.5, False),
    "bf16 + 5 deg": (True, 5.0, False),
    "bf16 + 10 deg": (True, 10.0, False),
    "bf16 + 5 deg, fov known": (True, 5.0, True),
}


def measure(scenes: int, height: int, width: int) -> dict[str, dict[str, float]]:
    """Errors and mean time of every kind of input at one size."""
    errors = {kind: [] for kind in KINDS}
    undetermined, seconds = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0)
    for number in range(scenes):
        scene = render_scene(HELD_OUT + number, height, width)
        fov = fov_from_focal(float(scene.intrinsics[0, 0]))
        for kind, (bf16, noise, known) in KINDS.items():
            label, log_range = eq7_label(scene.depth, scene.mask, bf16)
            normal = noisy_normals(scene.normal, noise, seed=number) if noise else scene.normal
            options = CalibrationOptions(fov_x_degrees=fov if known else None)
            start = time.perf_counter()
            found = calibrate(label[None], normal[None], scene.mask[None], options)
            seconds[kind] += time.perf_counter() - start
            if found.determined[0]:
                miss = (
                    abs(float(found.fov_x_degrees[0]) - fov),
                    100 * abs(float(found.log_range[0]) / log_range - 1),
                )
                errors[kind].append(miss)
            else:
                undetermined[kind] += 1
    rows = {}
    for kind in KINDS:
        table = torch.tensor(errors[kind]).reshape(-1, 2)
        low, high = (
            table.quantile(q, dim=0) if len(table) else torch.full((2,), math.nan) for q in (0.5, 0.9)
        )
        rows[kind] = {
            "fov median": float(low[0]),
            "fov p90": float(high[0]),
            "range median": float(low[1]),
            "range p90": float(high[1]),
            "undetermined": undetermined[kind],
            "seconds": seconds[kind] / scenes,
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibration errors on ray-cast scenes.")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--sizes", default="640x480,1024x768", help="width x height, separated by commas")
    arguments = parser.parse_args()
    print("| size | input | fov, degrees (median / 90th) | range, % (median / 90th) | undetermined | s |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes.split(","):
        width, height = (int(n) for n in size.split("x"))
        for kind, row in measure(arguments.scenes, height, width).items():
            print(
                f"| {size} | {kind} | {row['fov median']:.3f} / {row['fov p90']:.3f} "
                f"| {row['range median']:.3f} / {row['range p90']:.3f} | {row['undetermined']} | {row['seconds']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
