"""Miniature datasets in the published formats, of a scene whose geometry is known in closed form: a slanted
plane with a sphere in front, seen by a pinhole camera. Written by its own arithmetic, in float64, from the
formats' descriptions."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np


@dataclass(frozen=True)
class Truth:
    """planar depth (H,W), unit OpenCV normals (H,W,3) towards the camera, points (H,W,3), `sky` (H,W): no
    surface, `sphere` (H,W): the sphere is seen there, not the plane."""

    depth: np.ndarray
    normal: np.ndarray
    points: np.ndarray
    sky: np.ndarray
    sphere: np.ndarray


def plane_and_sphere(
    rays: np.ndarray, plane_normal: np.ndarray, offset: float, centre: np.ndarray, radius: float
) -> Truth:
    """rays (H,W,3) of any length, OpenCV axes, z > 0. The plane is {p: n . p = offset}."""
    n = plane_normal / np.linalg.norm(plane_normal)
    along = rays @ n
    with np.errstate(divide="ignore"):
        t = np.where(along * offset > 0, offset / along, np.inf)
    a, b = (rays**2).sum(-1), rays @ centre
    root = b**2 - a * (centre @ centre - radius**2)
    s = np.where((root > 0) & (b > 0), (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    hit = np.minimum(t, s)
    sky = ~np.isfinite(hit)
    points = rays * np.where(sky, 0, hit)[..., None]
    normal = np.where((s < t)[..., None], (points - centre) / radius, n)
    normal = np.where((normal * rays).sum(-1, keepdims=True) > 0, -normal, normal)
    return Truth(points[..., 2], normal, points, sky, s < t)


def pinhole_rays(height: int, width: int, fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Rays through whole-numbered pixel centres, z = 1; camera in pixels."""
    x, y = np.meshgrid((np.arange(width) - cx) / fx, (np.arange(height) - cy) / fy)
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def angle_degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between unit vectors (...,3)."""
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def write_hdf5(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=array)


def write_hypersim_frame(root: Path, scene: str, frame: int, distance, normal_cam, colour, entity) -> None:
    """One picture's four files; arrays as published (normals x right, y up, z backward)."""
    images = root / scene / "images"
    geometry = images / "scene_cam_00_geometry_hdf5"
    write_hdf5(
        images / "scene_cam_00_final_hdf5" / f"frame.{frame:04d}.color.hdf5", colour.astype(np.float16)
    )
    write_hdf5(geometry / f"frame.{frame:04d}.depth_meters.hdf5", distance.astype(np.float32))
    write_hdf5(geometry / f"frame.{frame:04d}.normal_cam.hdf5", normal_cam.astype(np.float32))
    write_hdf5(geometry / f"frame.{frame:04d}.render_entity_id.hdf5", entity.astype(np.int32))


def write_hypersim_tables(
    root: Path, rows: list[tuple[str, int, bool, str]], cameras: dict[str, np.ndarray]
) -> None:
    """rows: (scene, frame, released, split). cameras: scene -> M_cam_from_uv."""
    with (root / "metadata_images_split_scene_v1.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scene_name", "camera_name", "frame_id", "included_in_public_release", "exclude_reason",
                         "split_partition_name"])  # fmt: skip
        for scene, frame, released, split in rows:
            writer.writerow([scene, "cam_00", frame, released, "", split])
    with (root / "metadata_camera_parameters.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "scene_name",
                *(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)),
                "use_camera_physical",
            ]
        )
        for scene, matrix in cameras.items():
            writer.writerow([scene, *matrix.reshape(-1).tolist(), False])


def write_vkitti_frame(
    root: Path, scene: str, condition: str, number: int, depth: np.ndarray, sky: np.ndarray
) -> None:
    """One picture and its 16-bit depth in centimetres, as published."""
    frames = root / scene / condition / "frames"
    stored = np.where(sky, 65535, np.clip(np.round(depth * 100), 0, 65535)).astype(np.uint16)
    shade = (np.clip(depth / 40, 0, 1) * 255).astype(np.uint8)
    for kind, name, array in (("rgb", f"rgb_{number:05d}.jpg", np.stack([shade] * 3, -1)),
                              ("depth", f"depth_{number:05d}.png", stored)):  # fmt: skip
        folder = frames / kind / "Camera_0"
        folder.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), array)
