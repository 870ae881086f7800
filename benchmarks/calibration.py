"""Calibration on ray-cast scenes: python -m benchmarks.calibration [--scenes 100] [--sizes 640x480,1024x768] [--write]

Errors of field of view (degrees) and log range (percent) for each kind of input, over held-out scenes; scenes
that are called undetermined are counted and left out of the percentiles. Beside them stands how honest the
stated errors are: the share of scenes whose true error is within one and within two stated standard errors
(0.68 and 0.95 if errors were Gaussian and known).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from benchmarks.report import GEOMETRY, Table, machine, section, versions
from benchmarks.scenes import add_scene_arguments, over_scenes, quantiles, sizes
from fe2e_core.calibration import CalibrationOptions, calibrate
from fe2e_core.geometry import fov_from_focal
from tests.core.simulation import eq7_label, noisy_normals, plane, weak_label, weak_normals
from train.scenes import HELD_OUT, Scene, render_scene


@dataclass(frozen=True)
class Kind:
    """What is given. noise: degrees of normal error, half independent, half smooth over 64 pixels. weak: as a
    network that is wrong over a third of the picture: degrees of normals, pull toward the camera, bend of the
    label. crop: of the picture, its principal point is then unknown. wall: a facing plane instead of the scene,
    its depth off by 1e-4. every: of how many scenes one is measured.
    """

    bf16: bool = True
    noise: float = 0.0
    weak: tuple[float, float, float] | None = None
    known: bool = False
    crop: bool = False
    wall: bool = False
    every: int = 1


KINDS = {
    "exact": Kind(bf16=False),
    "bf16": Kind(),
    "bf16, 2.5 degrees": Kind(noise=2.5),
    "bf16, 5 degrees": Kind(noise=5.0),
    "bf16, 10 degrees": Kind(noise=10.0),
    "bf16, 5 degrees, field of view known": Kind(noise=5.0, known=True),
    "bf16, 5 degrees, cropped": Kind(noise=5.0, crop=True, every=4),
    "network wrong by 5 degrees": Kind(weak=(5.0, 0.05, 0.02), every=4),
    "network wrong by 10 degrees": Kind(weak=(10.0, 0.1, 0.05), every=4),
    "network wrong by 20 degrees": Kind(weak=(20.0, 0.4, 0.15), every=4),
    "one facing wall": Kind(wall=True, every=4),
    "one facing wall, 5 degrees": Kind(wall=True, noise=5.0, every=4),
    "one facing wall, 5 degrees, field of view known": Kind(wall=True, noise=5.0, known=True, every=4),
}


def measure(number: int, height: int, width: int) -> dict[str, float]:
    """Errors of one scene, and in units of the stated errors; inf for what was called undetermined."""
    scene = render_scene(HELD_OUT + number, height, width)
    out: dict[str, float] = {}
    for name, kind in KINDS.items():
        if number % kind.every:
            continue
        out |= {f"{name}/{key}": value for key, value in _one(scene, kind, number).items()}
    return out


def _one(scene: Scene, kind: Kind, number: int) -> dict[str, float]:
    height, width = scene.depth.shape
    normal, depth, mask = scene.normal, scene.depth, scene.mask
    if kind.wall:
        fov = fov_from_focal(float(scene.intrinsics[0, 0]))
        depth, normal, mask = plane((0.0, 0.0, -1.0), fov, height, width)
        generator = torch.Generator().manual_seed(number + 200_000)
        depth = depth * (1 + 1e-4 * torch.randn(depth.shape, generator=generator))
    if kind.noise:
        normal = noisy_normals(normal, kind.noise, seed=number)
    focal = float(scene.intrinsics[0, 0])
    if kind.crop:
        generator = torch.Generator().manual_seed(number)
        rows, cols = round(0.7 * height), round(0.7 * width)
        top = int(torch.randint(0, height - rows + 1, (1,), generator=generator))
        left = int(torch.randint(0, width - cols + 1, (1,), generator=generator))
        cut = (slice(top, top + rows), slice(left, left + cols))
        normal, depth, mask = normal[cut], depth[cut], mask[cut]
        focal *= width / cols
    label, log_range = eq7_label(depth, mask, kind.bf16)
    if kind.weak is not None:
        degrees, pull, bend = kind.weak
        normal = weak_normals(normal, degrees, pull, number)
        label = weak_label(label, bend, number + 100_000)
    fov = fov_from_focal(focal)
    options = CalibrationOptions(fov_x_degrees=fov if kind.known else None, find_center=kind.crop)
    found = calibrate(label[None], normal[None], mask[None], options)
    if not found.determined[0]:
        return {"undetermined": 1.0}
    miss = abs(float(found.fov_x_degrees[0]) - fov)
    ranges = abs(float(found.log_range[0]) - log_range)
    out = {
        "fov": miss,
        "range": 100 * ranges / log_range,
        "range, standard errors": ranges / float(found.log_range_error[0]),
    }
    if not kind.known:
        out["fov, standard errors"] = miss / float(found.fov_error[0])
    return out


def table(found: dict[str, list[float]]) -> Table:
    """One row for each kind of input."""
    rows = []
    for name in KINDS:
        values = {key: found.get(f"{name}/{key}", []) for key in ("fov", "range")}
        errors = [v for key in ("fov", "range") for v in found.get(f"{name}/{key}, standard errors", [])]
        within = [sum(v < n for v in errors) / max(1, len(errors)) for n in (1, 2)]
        fov, log_range = (_pair(values[key]) for key in ("fov", "range"))
        refused = len(found.get(f"{name}/undetermined", []))
        rows.append(
            [
                name,
                fov,
                log_range,
                f"{refused} of {refused + len(values['range'])}",
                f"{within[0]:.2f} / {within[1]:.2f}" if errors else "-",
            ]
        )
    header = ("input", "field of view, degrees", "log range, %", "undetermined", "within 1 / 2 stated errors")
    return Table(header, rows)


def _pair(values: list[float]) -> str:
    if not values:
        return "-"
    middle, high = quantiles(values, 0.5, 0.9)
    return f"{middle:.3f} / {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibration errors on ray-cast scenes.")
    add_scene_arguments(parser, 100)
    arguments = parser.parse_args()
    for height, width in sizes(arguments.sizes):
        found = over_scenes(measure, arguments.scenes, height, width, arguments.workers, arguments.keep)
        section(
            f"calibration_{width}",
            f"Calibration, {width}x{height}",
            f"{arguments.scenes} held-out scenes, median / 90th percentile of those that are determined.\n\n"
            + table(found).markdown(),
            f"python -m benchmarks.calibration --sizes {width}x{height} --scenes {arguments.scenes} --write",
            arguments.write,
            f"{machine()}, {versions('torch')}",
            GEOMETRY,
        )


if __name__ == "__main__":
    main()
