"""Flat walls and right angles in files: python -m benchmarks.solids [--scenes 30] [--write]

Ray-cast rooms become GLB meshes and PLY clouds, which are read back by readers of the tests. Points that lie in
one plane of the scene (at least 4 % of the picture) get a least-squares plane: the farthest of them from it, in
percent of the plane's distance, and the angles between planes that are square in the scene, in degrees off 90.
Once with exact depth and once with what calibration makes of the BF16 label and the normals.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch

from benchmarks.report import GEOMETRY, Table, machine, section, versions
from benchmarks.scenes import add_scene_arguments, over_scenes, quantiles, sizes
from fe2e_core.calibration import calibrate
from fe2e_core.geometry import depth_from_log, points_from_depth
from fe2e_core.gltf import write_glb
from fe2e_core.mesh import grid_mesh
from fe2e_core.ply import write_ply
from fe2e_core.pointcloud import point_cloud
from tests.core.simulation import eq7_label
from tests.core.solid_files import read_glb, read_ply
from train.scenes import HELD_OUT, Scene, render_scene

LEAST_SHARE = 0.04


def plane_map(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) number of the plane that each pixel lies in, -1 for none, and the planes' normals (P, 3)."""
    points = points_from_depth(scene.depth[None], scene.intrinsics[None])[0]
    offset = (points * scene.normal).sum(-1, keepdim=True)
    key = torch.cat([scene.normal, offset], -1).div(0.02).round()[scene.mask].numpy()
    _, group, counts = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    large = np.flatnonzero(counts > LEAST_SHARE * len(key))
    place = np.full(len(counts), -1)
    place[large] = np.arange(len(large))
    out = np.full(scene.mask.shape, -1)
    out[scene.mask.numpy()] = place[group.ravel()]
    normals = scene.normal.double().numpy()
    return out, np.array([normals[out == i].mean(0) for i in range(len(large))]).reshape(-1, 3)


def flatness(points: np.ndarray, plane: np.ndarray, normals: np.ndarray) -> dict[str, float]:
    """Of points (N, 3) that belong to planes (N,): worst distance in percent, worst right angle in degrees."""
    fitted, off = {}, []
    for i in range(len(normals)):
        part = points[plane == i].astype(np.float64)
        if len(part) < 100:
            continue
        centre = part.mean(0)
        _, axes = np.linalg.eigh((part - centre).T @ (part - centre))
        fitted[i] = axes[:, 0]
        off.append(100 * np.abs((part - centre) @ axes[:, 0]).max() / np.linalg.norm(centre))
    bent = [
        abs(90 - np.degrees(np.arccos(np.clip(abs(fitted[i] @ fitted[j]), 0, 1))))
        for i, j in itertools.combinations(fitted, 2)
        if abs(normals[i] @ normals[j]) < 1e-3
    ]
    return ({"flat": float(max(off))} if off else {}) | ({"square": float(max(bent))} if bent else {})


def measure(number: int, height: int, width: int) -> dict[str, float]:
    """Figures of one room, by source of the depth and kind of file."""
    scene = render_scene(HELD_OUT + number, height, width, "room")
    planes, normals = plane_map(scene)
    label, _ = eq7_label(scene.depth, scene.mask, bf16=True)
    found = calibrate(label[None], scene.normal[None], scene.mask[None])
    sources = {"exact depth": (scene.depth, scene.intrinsics)}
    if bool(found.determined[0]):
        depth = depth_from_log(label, float(found.log_range[0]))
        sources["calibrated"] = (depth, found.intrinsics(height, width)[0].float())
    out = {}
    for source, (depth, k) in sources.items():
        mesh = grid_mesh(depth, k, scene.normal, scene.mask)
        _, arrays = read_glb(write_glb(mesh))
        uv = arrays["TEXCOORD_0"]
        cloud = point_cloud(depth, k, scene.normal, scene.image, scene.mask)
        ply = read_ply(write_ply(cloud))
        points = np.stack([ply["x"], ply["y"], ply["z"]], 1)
        # where the point is seen: y up, the camera looks along -z
        seen = points[:, :2] / -points[:, 2:] * [1, -1] * k.diagonal()[:2].numpy() + k[:2, 2].numpy()
        for kind, vertices, place in (("mesh", arrays["POSITION"], uv), ("cloud", points, seen)):
            row = np.clip((place[:, 1] * height).astype(int), 0, height - 1)
            col = np.clip((place[:, 0] * width).astype(int), 0, width - 1)
            for key, value in flatness(vertices, planes[row, col], normals).items():
                out[f"{source}, {kind}/{key}"] = value
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Flat walls and right angles in GLB and PLY files.")
    add_scene_arguments(parser, 30)
    arguments = parser.parse_args()
    for height, width in sizes(arguments.sizes):
        found = over_scenes(measure, arguments.scenes, height, width, arguments.workers, arguments.keep)
        rows = []
        for name in dict.fromkeys(key.split("/")[0] for key in found):
            cells = [name]
            for key in ("flat", "square"):
                values = found.get(f"{name}/{key}", [])
                middle, high = quantiles(values, 0.5, 0.9)
                cells += [f"{middle:.3f} / {high:.3f}", f"{max(values):.3f}", str(len(values))]
            rows.append(cells)
        header = ("file", "off the plane, %", "most", "rooms", "right angles, degrees off", "most", "rooms")
        section(
            f"solids_{width}",
            f"Meshes and clouds of rooms, {width}x{height}",
            "Worst of each room; median / 90th percentile over rooms.\n\n" + Table(header, rows).markdown(),
            f"python -m benchmarks.solids --sizes {width}x{height} --scenes {arguments.scenes} --write",
            arguments.write,
            f"{machine()}, {versions('torch')}",
            GEOMETRY,
        )


if __name__ == "__main__":
    main()
