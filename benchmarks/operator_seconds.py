"""Seconds of every operator on one picture: python -m benchmarks.operator_seconds [--repetitions 5] [--threads 2] [--write]

A ray-cast scene at 1024x768 with BF16 labels and normals 5 degrees off, after one warm-up. Beside the seconds on
the clock stand those of the processors, summed over threads: with one thread other programs on the machine hardly
disturb them (two threads wait for each other by spinning). The network itself is not among the operators.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.report import GEOMETRY, Table, machine, section, versions
from benchmarks.timing import Clock, interleave
from fe2e_core.anchoring import fit_anchor
from fe2e_core.calibration import CalibrationOptions, calibrate
from fe2e_core.colors import apply_color_map
from fe2e_core.comparison import side_by_side, wipe
from fe2e_core.confidence import agreement
from fe2e_core.depth_decoding import DepthStyle, decode_depth
from fe2e_core.exr import EXR_PRESETS, read_exr, write_exr
from fe2e_core.geometry import depth_from_log, encode_normal, points_from_depth
from fe2e_core.gltf import encode_texture, write_glb
from fe2e_core.histogram import depth_histogram, draw_histogram
from fe2e_core.mesh import grid_mesh
from fe2e_core.npz import read_npz, write_npz
from fe2e_core.ply import write_ply
from fe2e_core.png16 import encode_png16
from fe2e_core.pointcloud import point_cloud
from fe2e_core.refinement import refine_depth
from fe2e_core.shading import Lamp, clay
from fe2e_core.splats import surfels
from fe2e_core.temporal import DepthStabilizer
from tests.core.simulation import eq7_label, noisy_normals
from train.scenes import HELD_OUT, render_scene

HEIGHT, WIDTH, LIMIT = 768, 1024, 2.0


def operators(folder: Path) -> dict[str, Callable[[], object]]:
    """Every operator on one scene; files go to the folder."""
    scene = render_scene(HELD_OUT + 8, HEIGHT, WIDTH)
    label, log_range = eq7_label(scene.depth, scene.mask, bf16=True)
    label, mask, image = label.clamp(-1, 1)[None], scene.mask[None], scene.image[None]
    normal, k = noisy_normals(scene.normal, 5.0, 0)[None], scene.intrinsics[None].float()
    depth = depth_from_log(label, log_range)
    one = {
        "log_depth": label,
        "normal": normal,
        "mask": mask,
        "image": image,
        "depth": depth,
        "intrinsics": k,
        "confidence": agreement(depth, normal, mask, k, image),
        "log_range": torch.tensor([log_range]),
        "log_near": torch.zeros(1),
        "metric": False,
    }
    write_exr(folder / "in.exr", one, 0, next(iter(EXR_PRESETS)))
    write_npz(folder / "in.npz", one)
    values = decode_depth(label, mask, DepthStyle("log")).picture

    def mesh_of() -> bytes:
        mesh = grid_mesh(depth[0], k[0], normal[0], mask[0])
        return write_glb(mesh, encode_texture(image[0]), intrinsics=k[0], aspect=WIDTH / HEIGHT)

    def cloud_of(stride: int = 1):
        return point_cloud(depth[0], k[0], normal[0], image[0], mask[0], stride=stride)

    def two_frames() -> None:
        state = DepthStabilizer()
        state.push(label[0], mask[0], image[0])
        state.push(label[0].roll(3, 1), mask[0].roll(3, 1), image[0].roll(3, 1))

    def anchor() -> torch.Tensor:
        fit = fit_anchor((label[mask] + 1) / 2, scene.depth[None][mask])
        return depth_from_log(label, fit.gain, fit.offset)

    def histogram() -> torch.Tensor:
        return draw_histogram(depth_histogram(values, mask), 768, 384)

    lamp = Lamp()
    off_centre = CalibrationOptions(find_center=True)
    return {
        "Log-Depth Decode": lambda: decode_depth(label, mask, DepthStyle("disparity")),
        "Normal Colorize": lambda: encode_normal(normal, "OpenGL"),
        "Calibrate Camera": lambda: calibrate(label, normal, mask),
        "Calibrate Camera, off centre": lambda: calibrate(label, normal, mask, off_centre),
        "Confidence": lambda: agreement(depth, normal, mask, k, image),
        "Refine Depth": lambda: refine_depth(depth, normal, mask, k, one["confidence"]),
        "Anchor Depth, another depth": anchor,
        "Stabilize Video Depth, two frames": two_frames,
        "Geometry to Mesh": mesh_of,
        "Geometry to Point Cloud": lambda: write_ply(cloud_of()),
        "Geometry to Splats, every pixel": lambda: surfels(cloud_of()),
        "Geometry to MoGe Geometry": lambda: points_from_depth(depth, k),
        "Save Geometry (EXR)": lambda: write_exr(folder / "out.exr", one, 0, "Blender"),
        "Load Geometry (EXR)": lambda: read_exr(folder / "in.exr"),
        "Save Geometry (NPZ)": lambda: write_npz(folder / "out.npz", one),
        "reading NPZ": lambda: read_npz(folder / "in.npz"),
        "Save Picture (16-bit PNG)": lambda: encode_png16(values[0]),
        "Colorize Depth": lambda: apply_color_map(values, "spectral"),
        "Clay Rendering": lambda: clay(normal, mask, lamp),
        "Compare Pictures, side by side": lambda: side_by_side([image, image]),
        "Compare Pictures, wipe": lambda: wipe(image, image, angle=30.0),
        "Depth Histogram": histogram,
    }


def measure(repetitions: int, threads: int) -> dict[str, list[Clock]]:
    """Clocks of all repetitions, by operator."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        found = operators(Path(folder))

        def contender(run: Callable[[], object]) -> Callable[[Clock], None]:
            def timed(clock: Clock) -> None:
                with clock.stage("all"):
                    run()

            return timed

        for run in found.values():
            run()
        return interleave({name: contender(run) for name, run in found.items()}, repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of every operator on one picture.")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into docs/geometry.md")
    arguments = parser.parse_args()
    rows, slow = [], []
    for name, clocks in measure(arguments.repetitions, arguments.threads).items():
        wall = torch.tensor([clock.seconds["all"] for clock in clocks])
        processor = torch.tensor([clock.processor["all"] for clock in clocks])
        figures = [wall.median(), wall.max(), processor.median(), processor.max()]
        rows.append([name, *(f"{float(f):.2f}" for f in figures)])
        if float(wall.median()) > LIMIT:
            slow.append(name)
    header = ("operator", "seconds, median", "most", "processor seconds, median", "most")
    section(
        f"seconds_{arguments.threads}",
        f"Seconds of every operator, {WIDTH}x{HEIGHT}, threads: {arguments.threads}",
        f"{arguments.repetitions} repetitions in turns.\n\n"
        + Table(header, rows).markdown()
        + f"\n\nOver {LIMIT:g} seconds on the clock (median): {', '.join(slow) or 'none'}.",
        f"python -m benchmarks.operator_seconds --repetitions {arguments.repetitions} --threads {arguments.threads} "
        "--write",
        arguments.write,
        f"{machine()}, {versions('torch')}",
        GEOMETRY,
    )


if __name__ == "__main__":
    main()
