"""Any folder of pictures with depth, and with normals if there are any, described by a small TOML file.

`<root>/dataset.toml`; `{name}` stands for what differs between the pictures, sub-folders included:

    image = "rgb/{name}.jpg"            # 8 or 16 bits, sRGB
    depth = "depth/{name}.png"          # 16-bit PNG, EXR or NPY
    depth_scale = 0.001                 # metres per stored unit
    depth_kind = "planar"               # or "distance", to the camera's centre
    depth_range = [0.1, 80.0]           # metres; what lies outside does not count
    normal = "normal/{name}.exr"        # left out: derived from depth
    normal_convention = "OpenGL"        # one of fe2e_core.geometry.NORMAL_CONVENTIONS
    mask = "mask/{name}.png"            # left out: depth alone decides. Not zero: counts
    fov_x = 60.0                        # degrees; or: camera = [fx, fy, cx, cy], in fractions of width and height
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fe2e_core.geometry import NORMAL_CONVENTIONS, decode_normal, distance_to_depth, intrinsics_from_fov
from train.data.derived_normals import derive_normals
from train.data.frame import BadFrame, Frame, fit_frame, make_frame
from train.data.pictures import read_array, read_picture
from train.typed_toml import build_config, read_toml

DESCRIPTION = "dataset.toml"
_NAME = "{name}"


@dataclass(frozen=True)
class FolderConfig:
    """root: the folder with `dataset.toml`. height, width: the size given out, multiples of 16."""

    root: str
    height: int
    width: int
    description: str = DESCRIPTION


@dataclass(frozen=True)
class FolderDescription:
    """What `dataset.toml` says (above). Raises ValueError for contradictions."""

    image: str
    depth: str
    depth_scale: float = 1.0
    depth_kind: str = "planar"
    depth_range: tuple[float, ...] = (1e-3, 1e4)
    normal: str = ""
    normal_convention: str = "OpenGL"
    mask: str = ""
    fov_x: float = 0.0
    camera: tuple[float, ...] = ()
    threshold: float = 0.1

    def __post_init__(self) -> None:
        for key in ("image", "depth", "normal", "mask"):
            value = getattr(self, key)
            optional = key in ("normal", "mask")  # empty: left out
            if not (optional and not value) and value.count(_NAME) != 1:
                raise ValueError(f"{key} = {value!r}; expected a path with one {_NAME}")
            if Path(value).is_absolute() or "\0" in value:
                raise ValueError(f"{key} = {value!r}; expected a path relative to the folder of {DESCRIPTION}")
        if self.depth_kind not in ("planar", "distance"):
            raise ValueError(f"depth_kind = {self.depth_kind!r}; expected 'planar' or 'distance'")
        if self.normal_convention not in NORMAL_CONVENTIONS:
            raise ValueError(
                f"normal_convention = {self.normal_convention!r}; expected one of "
                f"{', '.join(NORMAL_CONVENTIONS)}"
            )
        if bool(self.camera) == bool(self.fov_x) or (self.camera and len(self.camera) != 4):
            raise ValueError(
                "expected either fov_x in degrees or camera = [fx, fy, cx, cy]: without a camera there are "
                "no normals"
            )
        if self.fov_x and not 0 < self.fov_x < 180:
            raise ValueError(f"fov_x = {self.fov_x}; expected degrees between 0 and 180")
        if self.camera and min(self.camera[:2]) <= 0:
            raise ValueError(f"camera = {list(self.camera)}; expected focal lengths above 0")
        if len(self.depth_range) != 2 or not 0 <= self.depth_range[0] < self.depth_range[1]:
            raise ValueError(f"depth_range = {list(self.depth_range)}; expected [near, far] in metres")


class Folder:
    """The pictures that match `image`, sorted. Raises FileNotFoundError or ValueError naming the description."""

    def __init__(self, config: FolderConfig, name: str = "folder"):
        self.name = name
        self.size = (config.height, config.width)
        self._root = Path(config.root)
        path = self._root / config.description
        if not path.is_file():
            raise FileNotFoundError(
                f"{name}: there is no description '{path}'; train/data/folder.py shows one"
            )
        self._about = build_config(read_toml(path), FolderDescription, str(path))
        before, after = self._about.image.split(_NAME)
        stem = Path(before).parent if not before.endswith("/") else Path(before)
        start = self._root / stem
        found = (file.relative_to(self._root).as_posix() for file in start.rglob("*") if file.is_file())
        try:
            self._names = sorted(
                text[len(before) : len(text) - len(after)]
                for text in found
                if text.startswith(before) and text.endswith(after)
            )
        except OSError as error:  # no folder can have such a name
            raise ValueError(f"{path}: image = {self._about.image!r}: {error.strerror}") from error
        if not self._names:
            raise FileNotFoundError(f"{name}: no picture matches '{self._root / self._about.image}'")
        self.length = len(self._names)

    def files(self, index: int) -> Sequence[str]:
        """Picture and depth, then normals and mask where described."""
        about = self._about
        patterns = [p for p in (about.image, about.depth, about.normal, about.mask) if p]
        return [str(self._root / pattern.replace(_NAME, self._names[index])) for pattern in patterns]

    def fingerprint(self) -> str:
        """The description, and which normals count where none are given."""
        return f"folder {self._about}" if self._about.normal else f"folder {self._about} vouched"

    def read(self, index: int) -> Frame:
        """Raises BadFrame for files that are missing, broken or of the wrong kind."""
        about = self._about
        files = iter(self.files(index))
        image = read_picture(next(files))
        depth_file = next(files)
        stored = read_array(depth_file)
        if stored.ndim == 3:
            if np.ptp(stored, axis=-1).any():
                raise BadFrame(f"{depth_file}: {stored.shape[2]} different channels; expected depth in one")
            stored = stored[..., 0]
        if stored.shape != image.shape[:2]:
            raise BadFrame(f"{depth_file}: found shape {stored.shape}; expected one size, that of the picture, {image.shape[:2]}")
        if stored.dtype == np.uint8:
            raise BadFrame(f"{depth_file}: 8 bits are too few for depth; expected 16-bit PNG, EXR or NPY")
        depth = torch.from_numpy(stored.astype(np.float32)) * about.depth_scale
        height, width = depth.shape
        k = self._intrinsics(height, width)
        if about.depth_kind == "distance":
            depth = distance_to_depth(depth, k)
        near, far = about.depth_range
        valid = torch.isfinite(depth) & (depth > 0) & (depth >= near) & (depth <= far)
        normal_array = read_array(next(files)) if about.normal else None
        if about.mask:
            mask_file = next(files)
            mask = read_array(mask_file)
            if mask.shape[:2] != image.shape[:2]:
                raise BadFrame(f"{mask_file}: found shape {mask.shape}; expected one size, that of the picture, {image.shape[:2]}")
            valid &= torch.from_numpy((mask if mask.ndim == 2 else mask.max(-1)) != 0)
        name = f"{self.name}/{self._names[index]}"
        if normal_array is None:
            step = about.depth_scale if np.issubdtype(stored.dtype, np.integer) else 0.0
            derived, found = derive_normals(depth.numpy(), valid.numpy(), k.numpy(), about.threshold, step)
            normal, normal_valid = torch.from_numpy(derived), torch.from_numpy(found)
        else:
            normal, normal_valid = _stored_normals(normal_array, about.normal_convention, name)
        frame = make_frame(
            torch.from_numpy(image.copy()), depth, normal, valid, normal_valid & valid, k, name
        )
        return fit_frame(frame, *self.size)

    def _intrinsics(self, height: int, width: int) -> torch.Tensor:
        if not self._about.camera:
            return intrinsics_from_fov(self._about.fov_x, height, width)
        fx, fy, cx, cy = self._about.camera
        return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32)


def _stored_normals(array: np.ndarray, convention: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours of 8 or 16 bits, or vectors of floats in [-1,1] -> OpenCV normals and where there are any."""
    if array.ndim != 3 or array.shape[2] < 3:
        raise BadFrame(f"{name}: normals of shape {array.shape}; expected three channels")
    array = array[..., :3]
    if np.issubdtype(array.dtype, np.integer):
        colours = torch.from_numpy(array.astype(np.float32) / np.iinfo(array.dtype).max)
        known = torch.from_numpy(array.any(-1))
    else:
        vectors = torch.from_numpy(array.astype(np.float32))
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        known = torch.isfinite(length[..., 0]) & (length[..., 0] > 0.5)
        colours = (torch.nan_to_num(vectors) / length.clamp_min(1e-6) + 1) / 2
    return decode_normal(colours, convention), known
