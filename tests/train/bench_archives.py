"""Miniature archives in the layouts in which the nine benchmarks are published, written from their descriptions."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import OpenEXR

NAMES = {
    "nyuv2-depth": ("test/kitchen_0004/rgb_0001", "test/office_0005/rgb_0009"),
    "kitti": (
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069",
        "2011_09_28/2011_09_28_drive_0001_sync/image_02/data/0000000021",
    ),
    "eth3d": ("rgb/office/images/dslr_images/DSC_0219", "rgb/terrains/images/dslr_images/DSC_0474"),
    "scannet-depth": ("scene0088_02/color/001100", "scene0406_02/color/000300"),
    "diode": (
        "indoors/scene_00021/scan_00189/00021_00189_indoors_200_010",
        "outdoor/scene_00022/scan_00193/00022_00193_outdoor_000_000",
    ),
    "nyuv2-normal": ("test/000000", "test/000008"),
    "scannet-normal": ("scene0061_00/000420", "scene0532_00/000000"),
    "ibims": ("ibims/corridor_01", "ibims/office_02"),
    "sintel": ("alley_1/frame_0001", "market_5/frame_0013"),
}
"""Two images of each benchmark, in the order of their names."""

SIZES = {
    "nyuv2-depth": ((480, 640), (480, 640)),
    "kitti": ((375, 1242), (370, 1224)),
    "eth3d": ((6, 1500), (8, 1400)),
    "scannet-depth": ((24, 32), (24, 32)),
    "diode": ((20, 30), (20, 30)),
    "nyuv2-normal": ((20, 30), (10, 16)),
    "scannet-normal": ((20, 30), (10, 16)),
    "ibims": ((20, 30), (10, 16)),
    "sintel": ((20, 30), (10, 16)),
}
"""(height, width) of the two images as stored."""

TAR_ROOT = "./"


def _png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])[1].tobytes()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _exr(array: np.ndarray, scratch: Path) -> bytes:
    path = scratch / "one.exr"
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": array.astype(np.float32)}).write(str(path))
    data = path.read_bytes()
    path.unlink()
    return data


def picture(key: str, number: int) -> np.ndarray:
    """(H,W,3) uint8, the picture that is stored for an image."""
    rng = np.random.default_rng([len(key), number])
    return rng.integers(0, 256, (*SIZES[key][number], 3), dtype=np.uint8)


def _depth_files(key: str, number: int, name: str, truth: np.ndarray, masked: np.ndarray | None) -> dict[str, bytes]:
    image = picture(key, number)
    if key == "nyuv2-depth":
        depth = (truth * 1000).round().astype(np.uint16)
        filled = np.full_like(depth, 1234)
        return {
            f"{name}.png": _png(image),
            f"{name.replace('rgb_', 'depth_')}.png": _png(depth),
            f"{name.replace('rgb_', 'filled_')}.png": _png(filled),
        }
    if key == "kitti":
        _, drive, _, _, frame = name.split("/")
        depth = (truth * 256).round().astype(np.uint16)
        return {f"{name}.png": _png(image), f"{drive}/proj_depth/groundtruth/image_02/{frame}.png": _png(depth)}
    if key == "eth3d":
        _, scene, _, _, frame = name.split("/")
        raw = np.where(truth > 0, truth, np.inf).astype("<f4").tobytes()
        place = f"depth/{scene}_dslr_depth/{scene}/ground_truth_depth/dslr_images/{frame}.JPG"
        return {f"{name}.JPG": cv2.imencode(".jpg", image)[1].tobytes(), place: raw}
    if key == "scannet-depth":
        depth = (truth * 1000).round().astype(np.uint16)
        return {f"{name}.jpg": cv2.imencode(".jpg", image)[1].tobytes(), f"{name.replace('color', 'depth')}.png": _png(depth)}
    mask = truth > 0 if masked is None else masked
    return {
        f"{name}.png": _png(image),
        f"{name}_depth.npy": _npy(truth.astype(np.float32)[..., None]),
        f"{name}_depth_mask.npy": _npy(mask.astype(np.float32)),
    }


def _normal_files(key: str, number: int, name: str, truth: np.ndarray, scratch: Path) -> dict[str, bytes]:
    root = f"dsine_eval/{key.removesuffix('-normal')}/{name}"
    files = {f"{root}_img.png": _png(picture(key, number)), f"{root}_intrins.npy": _npy(np.eye(3))}
    if key.endswith("-normal"):
        return {**files, f"{root}_normal.png": _png(stored_colours(truth))}
    return {**files, f"{root}_normal.exr": _exr(truth, scratch)}


def stored_colours(truth: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 of DSINE's vectors; zero vectors are black."""
    colours = ((truth + 1) / 2 * 255).round().astype(np.uint8)
    return np.where(np.abs(truth).sum(-1, keepdims=True) > 0, colours, 0).astype(np.uint8)


_OTHERS = {  # what the archives hold besides
    "nyuv2-depth": ("train/cafe_0001/rgb_0001.png", "train/cafe_0001/depth_0001.png"),
    "kitti": ("2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000075.png",),  # listed with "None"
    "eth3d": ("depth/._office_dslr_depth",),
    "scannet-depth": ("scene0088_02/pose/001100.txt",),
    "diode": ("indoors/._scene_00021",),
}


def write_depth_archive(
    folder: Path, key: str, truths: list[np.ndarray], masks: list[np.ndarray] | None = None
) -> Path:
    """`truths`: (H,W) metres at the stored size, 0 where there is none; `masks`: DIODE's own."""
    archives = {
        "nyuv2-depth": "nyu_labeled_extracted.tar",
        "kitti": "kitti_eigen_split_test.tar",
        "eth3d": "eth3d.tar",
        "scannet-depth": "scannet_val_sampled_800_1.tar",
        "diode": "diode_val.tar",
    }
    files: dict[str, bytes] = dict.fromkeys(_OTHERS[key], b"other")
    for number, (name, truth) in enumerate(zip(NAMES[key], truths, strict=True)):
        files |= _depth_files(key, number, name, truth, masks[number] if masks else None)
    path = folder / archives[key]
    with tarfile.open(path, "w") as tar:
        for name in reversed(files):  # an archive need not be sorted
            entry = tarfile.TarInfo(TAR_ROOT + name)
            entry.size = len(files[name])
            tar.addfile(entry, io.BytesIO(files[name]))
    return path


def write_normal_archive(folder: Path, truths: dict[str, list[np.ndarray]]) -> Path:
    """`truths`: by benchmark, (H,W,3) unit vectors in DSINE's axes, zero where there are none."""
    path = folder / "dsine_eval.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dsine_eval/readme.txt", "licences")
        archive.writestr("dsine_eval/nyuv2/train/000002_img.png", b"other")
        archive.writestr("dsine_eval/oasis/val/1_img.png", b"other")
        for key, arrays in truths.items():
            for number, (name, truth) in enumerate(zip(NAMES[key], arrays, strict=True)):
                for file, data in _normal_files(key, number, name, truth, folder).items():
                    archive.writestr(file, data)
    return path
