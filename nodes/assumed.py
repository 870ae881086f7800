"""What every 3D and file node needs: depth and a camera, one picture of the batch, ComfyUI's own 3D types."""

from __future__ import annotations

import math
from io import BytesIO

from comfy_api.latest import Types, io
from torch import Tensor

from ..fe2e_core.assumptions import DEFAULT_FOV, with_depth_and_camera
from ..fe2e_core.depth_decoding import DEFAULT_RATIO
from .types import FE2EGeometryType, require_geometry

Camera = io.Custom("LOAD3D_CAMERA")
"""By name, because older ComfyUI versions lack some of these classes and would lose the whole pack over
it."""


def geometry_input() -> io.Input:
    return FE2EGeometryType.Input(
        "geometry",
        tooltip="From Estimate Depth+Normal or any FE2E node after it. Calibrated or anchored geometry has "
        "its true shape or size; otherwise the field of view and ratio given here are assumed.",
    )


def index_input() -> io.Input:
    return io.Int.Input(
        "batch_index", default=0, min=0, max=4096, tooltip="Which picture of the batch, counted from 0."
    )


def assumed_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "fov",
            default=DEFAULT_FOV,
            min=1.0,
            max=170.0,
            step=0.1,
            tooltip="Horizontal field of view in degrees, used only if the geometry has no camera.",
        ),
        io.Float.Input(
            "far_near_ratio",
            default=DEFAULT_RATIO,
            min=1.001,
            max=10000.0,
            step=0.1,
            tooltip="Far plane / near plane, used only if the geometry has no depth range. About 5 for a "
            "room, 40 for a street.",
        ),
    ]


def complete(geometry: dict, fov: float, far_near_ratio: float) -> dict:
    """The geometry with depth and intrinsics, assumed where they are not known."""
    require_geometry(geometry)
    return with_depth_and_camera(geometry, fov_x_degrees=fov, far_near_ratio=far_near_ratio)


def one_picture(geometry: dict, batch_index: int) -> dict[str, Tensor]:
    """Tensors of one picture, without the batch axis, on the CPU. Raises ValueError outside the batch."""
    count = len(geometry["log_depth"])
    if batch_index >= count:
        raise ValueError(
            f"batch_index: found {batch_index}, expected 0 to {count - 1}: the batch has {count} pictures"
        )
    keys = ("depth", "normal", "mask", "image", "intrinsics", "confidence")
    return {key: geometry[key][batch_index].cpu() for key in keys if geometry.get(key) is not None}


def file_3d(data: bytes, kind: str) -> object:
    """ComfyUI's in-memory 3D file. Raises RuntimeError where ComfyUI is too old to have one."""
    if not hasattr(Types, "File3D"):
        raise RuntimeError("this ComfyUI has no 3D files; update ComfyUI to use this node")
    return Types.File3D(BytesIO(data), kind)


def viewpoint(picture: dict[str, Tensor]) -> dict:
    """Where the photograph was taken from, as the camera of ComfyUI's 3D viewers (y up, looking along -z)."""
    depth, mask = picture["depth"], picture["mask"]
    inside = depth[mask] if bool(mask.any()) else depth.reshape(-1)
    height, width = depth.shape
    return {
        "position": {"x": 0.0, "y": 0.0, "z": 0.0},
        "target": {"x": 0.0, "y": 0.0, "z": -float(inside.median())},
        "quaternion": {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0},
        "fov": math.degrees(2 * math.atan(0.5 / float(picture["intrinsics"][1, 1]))),
        "aspect": width / height,
        "zoom": 1,
        "cameraType": "perspective",
    }
