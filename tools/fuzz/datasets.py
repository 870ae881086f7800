"""Training data: any folder with a description, Hypersim and Virtual KITTI, one tiny picture each."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import h5py
import numpy as np
import OpenEXR

from tools.fuzz.targets import Target, require
from train.data.folder import Folder, FolderConfig
from train.data.hypersim import CAMERA_FILE, SPLIT_FILE, Hypersim, HypersimConfig
from train.data.vkitti import VirtualKitti, VirtualKittiConfig

H, W = 32, 48
_ROWS, _COLUMNS = np.meshgrid(np.linspace(0, 1, H), np.linspace(0, 1, W), indexing="ij")
_DEPTH = (2 + _COLUMNS + 0.5 * _ROWS).astype(np.float32)
_PICTURE = np.stack([_COLUMNS, _ROWS, 1 - _COLUMNS], -1)
_NORMAL = np.zeros((H, W, 3), np.float32)
_NORMAL[..., 2] = 1


def _check(frame) -> None:
    require(frame.size == (H, W), "a frame of the size that was asked for")
    require(bool(frame.image.isfinite().all()) and bool(frame.depth.isfinite().all()), "finite pictures and depth")
    length = frame.normal.square().sum(-1)
    require(bool(((length - 1).abs() < 1e-3).all()), "normals of length one")
    require(bool(frame.intrinsics.isfinite().all()), "a finite camera")


# -- a folder with a description ----------------------------------------------------------------------------


def _write_exr(path: Path, channels: dict[str, np.ndarray]) -> None:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {name: np.ascontiguousarray(values) for name, values in channels.items()}).write(str(path))


def _write_folder(kind: str):
    """depth in one of three formats, with normals and a mask beside the first two."""
    suffix = {"png": "png", "exr": "exr", "npy": "npy"}[kind]
    lines = ['image = "i_{name}.png"', f'depth = "d_{{name}}.{suffix}"', "fov_x = 60.0", f"depth_scale = {0.001 if kind == 'png' else 1.0}"]

    def write(folder: Path) -> None:
        cv2.imwrite(str(folder / "i_1.png"), (_PICTURE * 255).astype(np.uint8))
        if kind == "png":
            cv2.imwrite(str(folder / "d_1.png"), (_DEPTH * 1000).astype(np.uint16))
            cv2.imwrite(str(folder / "m_1.png"), np.full((H, W), 255, np.uint8))
            extra = ['mask = "m_{name}.png"', "depth_range = [0.1, 80.0]"]
        elif kind == "exr":
            _write_exr(folder / "d_1.exr", {"Z": _DEPTH})
            _write_exr(folder / "n_1.exr", {"RGB": _NORMAL})
            extra = ['normal = "n_{name}.exr"', 'normal_convention = "OpenGL"', 'depth_kind = "distance"']
        else:
            np.save(folder / "d_1.npy", _DEPTH)
            extra = []
        (folder / "dataset.toml").write_text("\n".join([*lines, *extra]))

    return write


def _read_folder(path: Path) -> None:
    _check(Folder(FolderConfig(str(path.parent), H, W), "mine").read(0))


# -- Hypersim -----------------------------------------------------------------------------------------------

_SCENE = Path("ai_001_001/images")
_HYPERSIM = {
    "color": ("scene_cam_00_final_hdf5", (_PICTURE * 2).astype(np.float16)),
    "depth_meters": ("scene_cam_00_geometry_hdf5", _DEPTH),
    "normal_cam": ("scene_cam_00_geometry_hdf5", _NORMAL),
    "render_entity_id": ("scene_cam_00_geometry_hdf5", np.ones((H, W), np.int32)),
}
_HYPERSIM_FILES = {kind: str(_SCENE / group / f"frame.0000.{kind}.hdf5") for kind, (group, _) in _HYPERSIM.items()}
#: Beside the others, put in the place of the colours: a few bytes that claim a picture of a terabyte.
_VAST = "vast.hdf5"


def _write_hypersim(folder: Path) -> None:
    for kind, name in _HYPERSIM_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("dataset", data=_HYPERSIM[kind][1])
    with h5py.File(folder / _VAST, "w") as file:
        file.create_dataset("dataset", (2**20, 2**19), chunks=(16, 16), dtype="f2", fillvalue=1)
    (folder / SPLIT_FILE).write_text("scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,"
                                     "split_partition_name\nai_001_001,cam_00,0,True,,train\n")  # fmt: skip
    tangent = math.tan(math.radians(30))
    names = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    values = [tangent, 0, 0, 0, tangent * H / W, 0, 0, 0, -1]
    (folder / CAMERA_FILE).write_text(f"scene_name,{','.join(names)}\nai_001_001,{','.join(map(str, values))}\n")


def _read_hypersim(path: Path) -> None:
    root = path
    while not (root / SPLIT_FILE).is_file():
        root = root.parent
    if path.name == _VAST:
        colours = root / _HYPERSIM_FILES["render_entity_id"]
        kept = colours.read_bytes()
        colours.write_bytes(path.read_bytes())
        try:
            return _check(Hypersim(HypersimConfig(str(root), max_invalid=1.0, height=H, width=W)).read(0))
        finally:
            colours.write_bytes(kept)
    return _check(Hypersim(HypersimConfig(str(root), max_invalid=1.0, height=H, width=W)).read(0))


# -- Virtual KITTI ------------------------------------------------------------------------------------------

_RGB = "Scene02/clone/frames/rgb/Camera_0/rgb_00000.jpg"
_CENTIMETRES = "Scene02/clone/frames/depth/Camera_0/depth_00000.png"


def _write_vkitti(folder: Path) -> None:
    for name, array in ((_RGB, (_PICTURE * 255).astype(np.uint8)), (_CENTIMETRES, (_DEPTH * 100).astype(np.uint16))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), array)


def _read_vkitti(path: Path) -> None:
    root = path.parents[5]
    _check(VirtualKitti(VirtualKittiConfig(str(root), height=H, width=W)).read(0))


TARGETS = (
    Target("folder, PNG", _write_folder("png"), _read_folder, ("i_1.png", "d_1.png", "m_1.png", "dataset.toml"), ("mine",)),
    Target("folder, EXR", _write_folder("exr"), _read_folder, ("d_1.exr", "n_1.exr", "dataset.toml"), ("mine",)),
    Target("folder, NPY", _write_folder("npy"), _read_folder, ("d_1.npy", "dataset.toml"), ("mine",)),
    Target("Hypersim", _write_hypersim, _read_hypersim, (*_HYPERSIM_FILES.values(), SPLIT_FILE, CAMERA_FILE), ("hypersim",),
           liars=(_VAST,)),
    Target("Virtual KITTI", _write_vkitti, _read_vkitti, (_RGB, _CENTIMETRES), ("vkitti",)),
)  # fmt: skip
