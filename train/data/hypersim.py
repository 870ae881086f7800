"""Hypersim (Roberts et al. 2021) as published: HDF5 files of linear colour, distance and normals.

    <root>/ai_VVV_NNN/images/scene_cam_XX_final_hdf5/frame.IIII.color.hdf5             linear RGB
    <root>/ai_VVV_NNN/images/scene_cam_XX_geometry_hdf5/frame.IIII.depth_meters.hdf5   distance to the camera's centre
                                                                  .normal_cam.hdf5     x right, y up, z backward
                                                                  .render_entity_id.hdf5   -1: nothing there
    metadata_images_split_scene_v1.csv      which pictures are released, and their split
    metadata_camera_parameters.csv          one camera per scene: ray = M_cam_from_uv (u, v, 1), u and v in [-1, 1]

Despite its name `depth_meters` is a distance. Some cameras have a shifted or tilted lens. M = R A, a rotation
and an upper triangle, makes each of them an ordinary pinhole camera with turned axes, so that planar depth
and normals are exact for all: they are given in the turned axes, whose z is perpendicular to the picture."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fe2e_core.files import sha256
from train.data.frame import BadFrame, Frame, RejectedFrame, fit_frame, make_frame

log = logging.getLogger(__name__)

SPLIT_FILE = "metadata_images_split_scene_v1.csv"
CAMERA_FILE = "metadata_camera_parameters.csv"
SIZE = (768, 1024)
#: Half the field of view of almost all cameras, as a tangent: f = 886.81 px at 1024x768, 60 degrees.
_USUAL_TANGENT = 512 / 886.81

_NEVER_TOO_LARGE = 2**28
#: Deflate's limit.
_MOST_BYTES_PER_BYTE = 1032

_GAMMA = 2.2
_BRIGHT = 0.8
_LUMA = np.array([0.3, 0.59, 0.11], dtype=np.float32)


@dataclass(frozen=True)
class HypersimConfig:
    """root: folder of the scenes. split: "train", "val", "test" or "all". max_invalid: pictures with a larger
    share of invalid pixels are left out (the paper keeps up to 1 %). height, width: size given out; the
    published one is 768x1024. split_file, camera_file: empty for the published names in `root`."""

    root: str
    split: str = "train"
    max_invalid: float = 0.01
    height: int = SIZE[0]
    width: int = SIZE[1]
    split_file: str = ""
    camera_file: str = ""


@dataclass(frozen=True)
class _Camera:
    """`rotation` (3,3): published axes turned to OpenCV ones = rotation @ own axes; `intrinsics` (3,3)
    normalised.
    """

    rotation: np.ndarray
    intrinsics: np.ndarray


class Hypersim:
    """The pictures of one split. Raises FileNotFoundError, or ValueError when the split has no picture."""

    def __init__(self, config: HypersimConfig, name: str = "hypersim"):
        self.name = name
        self.size = (config.height, config.width)
        self._config = config
        self._root = Path(config.root)
        self._frames = _read_split(Path(config.split_file or self._root / SPLIT_FILE), config.split)
        self._camera_file = Path(config.camera_file or self._root / CAMERA_FILE)
        self._cameras = _read_cameras(self._camera_file)
        self.length = len(self._frames)

    def files(self, index: int) -> Sequence[str]:
        """The four files of a picture: colour, distance, normals, entities."""
        scene, camera, frame = self._frames[index]
        images = self._root / scene / "images"
        kinds = (
            ("final", "color"),
            ("geometry", "depth_meters"),
            ("geometry", "normal_cam"),
            ("geometry", "render_entity_id"),
        )
        return [
            str(images / f"scene_{camera}_{group}_hdf5" / f"frame.{frame:04d}.{kind}.hdf5")
            for group, kind in kinds
        ]

    def fingerprint(self) -> str:
        """Which pictures are left out, and all cameras."""
        cameras = sha256(self._camera_file) if self._camera_file.is_file() else "usual"
        return f"hypersim {self._config.max_invalid} {cameras}"

    def read(self, index: int) -> Frame:
        """Raises BadFrame for files that are missing or broken, RejectedFrame for too many invalid pixels."""
        scene, camera_name, number = self._frames[index]
        name = f"{self.name}/{scene}/{camera_name}/{number:04d}"
        colour_file, distance_file, normal_file, entity_file = self.files(index)
        entity = _read_hdf5(entity_file, 2)
        valid = entity != -1
        distance = _read_hdf5(distance_file, 2).astype(np.float32)
        valid &= np.isfinite(distance) & (distance > 0)
        share = 1 - float(valid.mean())
        if share > self._config.max_invalid:
            raise RejectedFrame(
                f"{name}: {share:.1%} of the pixels are invalid; at most {self._config.max_invalid:.1%} are "
                "allowed"
            )
        colour = _read_hdf5(colour_file, 3).astype(np.float32)
        camera = self._cameras.get(scene, _usual_camera(*distance.shape))
        rays = _rays(camera, *distance.shape)
        depth = distance / np.linalg.norm(rays, axis=-1)
        published = _read_hdf5(normal_file, 3).astype(np.float32)
        normal, normal_valid = repair_normals(_to_camera(published, camera), rays)
        frame = make_frame(
            image=torch.from_numpy(tone_map(colour, valid)),
            depth=torch.from_numpy(depth.astype(np.float32)),
            normal=torch.from_numpy(normal),
            valid=torch.from_numpy(valid),
            normal_valid=torch.from_numpy(normal_valid & valid),
            intrinsics=torch.from_numpy(camera.intrinsics.astype(np.float32)),
            name=name,
        )
        return fit_frame(frame, *self.size)


def tone_map(colour: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Linear RGB (H,W,3) -> [0,1], Hypersim's own rule: the 90th percentile of the valid brightness becomes
    0.8.

    Black pictures stay black.
    """
    colour = np.nan_to_num(colour, nan=0.0, posinf=np.finfo(np.float32).max / 4, neginf=0.0)
    scale = 1.0
    if valid.any():
        bright = float(np.percentile((colour @ _LUMA)[valid], 90))
        scale = _BRIGHT**_GAMMA / bright if bright >= 1e-4 else 0.0
    with np.errstate(over="ignore"):
        return np.clip(np.maximum(scale * colour, 0) ** (1 / _GAMMA), 0, 1).astype(np.float32)


def repair_normals(normal: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals facing the camera (n . ray < 0), and where there are any.

    normal, rays (H,W,3), OpenCV axes. Published normals may be zero (no surface), of another length, or look
    away from the camera (surfaces modelled inside out)."""
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    known = np.isfinite(length[..., 0]) & (length[..., 0] > 1e-3)
    unit = np.where(known[..., None], normal / np.where(known[..., None], length, 1), 0)
    away = (unit * rays).sum(-1, keepdims=True) > 0
    return np.where(away, -unit, unit).astype(np.float32), known


def camera_of_matrix(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M_cam_from_uv (3,3) -> rotation (3,3) and normalised intrinsics (3,3), both for OpenCV axes.

    u runs to the right and v upwards, so both the axes and v are flipped first. Raises ValueError for a
    singular M."""
    flipped = np.diag([1.0, -1.0, -1.0]) @ np.asarray(matrix, dtype=np.float64) @ np.diag([1.0, -1.0, 1.0])
    if not np.isfinite(flipped).all() or not 1e-12 < np.linalg.det(flipped) < 1e12:
        raise ValueError(
            f"camera matrix {np.asarray(matrix).tolist()} is singular or mirrored; expected M_cam_from_uv "
            "of a pinhole camera"
        )
    rotation, triangle = np.linalg.qr(flipped)
    signs = np.sign(np.diag(triangle))
    rotation, triangle = rotation * signs, triangle * signs[:, None]
    pixels = np.array([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])
    return rotation, pixels @ np.linalg.inv(triangle / triangle[2, 2])


def _usual_camera(height: int, width: int) -> _Camera:
    return _Camera(*camera_of_matrix(np.diag([_USUAL_TANGENT, _USUAL_TANGENT * height / width, -1.0])))


def _rays(camera: _Camera, height: int, width: int) -> np.ndarray:
    """(H,W,3) rays through the pixel centres, z = 1."""
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    points = np.stack([u, v, np.ones_like(u)], axis=-1)
    return points @ np.linalg.inv(camera.intrinsics).T


def _to_camera(normal: np.ndarray, camera: _Camera) -> np.ndarray:
    """Published normals (x right, y up, z backward) in the camera's own OpenCV axes."""
    return (normal * np.array([1, -1, -1], dtype=np.float32)) @ camera.rotation.astype(np.float32)


def _read_hdf5(path: str, dimensions: int) -> np.ndarray:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            dataset = file["dataset"]
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
                raise ValueError(f"'dataset' is {dataset}")
            # a few bytes can claim a terabyte of one value; no compressed array is that much smaller than its numbers
            if dataset.nbytes > max(_NEVER_TOO_LARGE, _MOST_BYTES_PER_BYTE * dataset.id.get_storage_size()):
                raise ValueError(f"{dataset.id.get_storage_size()} bytes that claim shape {dataset.shape}")
            array = np.asarray(dataset)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadFrame(f"{path}: {error}; expected an HDF5 file with 'dataset'. Download it again") from error
    if array.ndim != dimensions or (dimensions == 3 and array.shape[2] != 3):
        raise BadFrame(
            f"{path}: found shape {array.shape}; expected (H, W{', 3' if dimensions == 3 else ''})"
        )
    return array


def _read_split(path: Path, split: str) -> list[tuple[str, str, int]]:
    """(scene, camera, frame) of the released pictures of a split, in the file's order."""
    if split not in ("train", "val", "test", "all"):
        raise ValueError(f"hypersim split is {split!r}; expected 'train', 'val', 'test' or 'all'")
    if not path.is_file():
        raise FileNotFoundError(
            f"hypersim: there is no split file '{path}'; download {SPLIT_FILE} of the dataset's repository"
        )
    frames = []
    needed = {"scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name"}
    for row in _rows(path, needed):
        released = row["included_in_public_release"].strip().lower() == "true"
        if released and split in ("all", row["split_partition_name"]):
            number = row["frame_id"]
            if not (number.isascii() and number.isdigit() and len(number) < 10):
                raise ValueError(f"{path}: frame_id is {number!r}; expected a number")
            frames.append((row["scene_name"], row["camera_name"], int(number)))
    if not frames:
        raise ValueError(f"{path}: no released picture of split '{split}'; is it the published file?")
    return frames


def _rows(path: Path, needed: set[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file that has these columns. Raises ValueError naming the file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not needed <= set(reader.fieldnames or ()):
                raise ValueError(f"columns {reader.fieldnames}; expected {sorted(needed)}")
            for row in reader:
                absent = sorted(name for name in needed if row[name] is None)
                if absent:
                    raise ValueError(f"line {reader.line_num} lacks {', '.join(absent)}")
                yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: {error}; expected the published file") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_cameras(path: Path) -> dict[str, _Camera]:
    """Scene -> camera. Without the file every scene gets the usual camera, and a warning says so."""
    if not path.is_file():
        log.warning(
            "hypersim: there is no '%s'; all scenes are taken for a 60 degree camera, which is wrong for a "
            "few",
            path,
        )
        return {}
    names = [[f"M_cam_from_uv_{i}{j}" for j in range(3)] for i in range(3)]
    cameras = {}
    for row in _rows(path, {"scene_name", *sum(names, [])}):
        try:
            matrix = np.array([[float(row[name]) for name in line] for line in names])
            cameras[row["scene_name"]] = _Camera(*camera_of_matrix(matrix))
        except ValueError as error:
            raise ValueError(
                f"{path}: scene {row['scene_name']!r}: {error}; expected M_cam_from_uv_00 to _22"
            ) from error
    return cameras
