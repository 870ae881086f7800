"""Multi-layer float EXR files: picture, depth, normals, mask and confidence in one file, the camera in its
header.

Depth is planar (along the axis), every channel 32-bit float, the picture scene-linear as EXR wants it. The
presets differ in channel names, axes and units, so that each program finds what it expects without a
conversion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from .assumptions import ASSUMABLE, mark
from .geometry import fov_from_focal

_FORMAT_VERSION = 1
_SIZES = {"picture": 3, "depth": 1, "normal": 3, "mask": 1, "confidence": 1, "log_depth": 1}

Rows = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]


@dataclass(frozen=True)
class ExrPreset:
    """Names, axes and unit one program expects.

    `channels` gives the channel names of each entry of the geometry; `axes` the rows of the signed
    permutation that takes OpenCV vectors to the program's axes; `scale` its length unit per metre.
    """

    channels: dict[str, tuple[str, ...]]
    axes: Rows
    axes_text: str
    scale: float
    unit: str


_OPENCV: Rows = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
_Y_UP: Rows = ((1, 0, 0), (0, -1, 0), (0, 0, -1))
_FORWARD_RIGHT_UP: Rows = ((0, 0, 1), (1, 0, 0), (0, -1, 0))

EXR_PRESETS: dict[str, ExrPreset] = {
    "FE2E (OpenCV axes, metres)": ExrPreset(
        {
            "picture": ("R", "G", "B"),
            "depth": ("Z",),
            "normal": ("N.x", "N.y", "N.z"),
            "mask": ("mask",),
            "confidence": ("confidence",),
            "log_depth": ("log_depth",),
        },
        _OPENCV,
        "x right, y down, z forward",
        1.0,
        "metre",
    ),
    # Blender takes layer.pass.channel apart; its single values are called X, its depth pass Z. Its normal
    # pass is in world axes: these are the ones of a camera without rotation, which looks along -z with y up.
    "Blender": ExrPreset(
        {
            "picture": ("ViewLayer.Combined.R", "ViewLayer.Combined.G", "ViewLayer.Combined.B"),
            "depth": ("ViewLayer.Depth.Z",),
            "normal": ("ViewLayer.Normal.X", "ViewLayer.Normal.Y", "ViewLayer.Normal.Z"),
            "mask": ("ViewLayer.Mask.X",),
            "confidence": ("ViewLayer.Confidence.X",),
            "log_depth": ("ViewLayer.LogDepth.X",),
        },
        _Y_UP,
        "x right, y up, z toward the camera",
        1.0,
        "metre",
    ),
    # Nuke's own layers are rgba, depth.Z and mask.a; its cameras look along -z with y up.
    "Nuke": ExrPreset(
        {
            "picture": ("R", "G", "B"),
            "depth": ("depth.Z",),
            "normal": ("N.X", "N.Y", "N.Z"),
            "mask": ("mask.a",),
            "confidence": ("confidence.a",),
            "log_depth": ("log_depth.Z",),
        },
        _Y_UP,
        "x right, y up, z toward the camera",
        1.0,
        "metre",
    ),
    # Unreal is left-handed and measures in centimetres; passes are named as its own buffers.
    "Unreal": ExrPreset(
        {
            "picture": ("R", "G", "B"),
            "depth": ("SceneDepth.R",),
            "normal": ("WorldNormal.R", "WorldNormal.G", "WorldNormal.B"),
            "mask": ("Mask.R",),
            "confidence": ("Confidence.R",),
            "log_depth": ("LogDepth.R",),
        },
        _FORWARD_RIGHT_UP,
        "x forward, y right, z up",
        100.0,
        "centimetre",
    ),
}


def write_exr(path: str | Path, geometry: dict, index: int, preset: str) -> None:
    """Write picture `index` of an FE2E_GEOMETRY that has `depth` and `intrinsics` (assumptions.py adds them).

    Raises ValueError for an unknown preset, a missing key or an index outside the batch, OSError when the disk does
    not take it, ImportError if the OpenEXR bindings are not installed.
    """
    style = _preset(preset)
    missing = [key for key in ("depth", "intrinsics") if geometry.get(key) is None]
    if missing:
        raise ValueError(f"geometry: lacks {', '.join(missing)}; calibrate or decode it first")
    if not 0 <= index < len(geometry["log_depth"]):
        raise ValueError(f"index: found {index}, expected 0 to {len(geometry['log_depth']) - 1}")
    openexr = _bindings()
    picture = {
        key: _numbers(geometry[key][index]) for key in ("image", "depth", "normal", "mask", "log_depth")
    }
    layers = {
        "picture": linear_from_srgb(picture["image"][..., :3]),
        "depth": picture["depth"] * style.scale,
        "normal": picture["normal"] @ torch.tensor(style.axes, dtype=torch.float32).T,
        "mask": picture["mask"],
        "log_depth": picture["log_depth"],
    }
    if geometry.get("confidence") is not None:
        layers["confidence"] = _numbers(geometry["confidence"][index])
    channels = {}
    for key, values in layers.items():
        planes = values.unsqueeze(-1) if _SIZES[key] == 1 else values
        for number, name in enumerate(style.channels[key]):
            channels[name] = np.ascontiguousarray(planes[..., number].numpy())
    header = {
        "compression": openexr.ZIP_COMPRESSION,
        "type": openexr.scanlineimage,
        **_camera_header(geometry["intrinsics"][index], *layers["depth"].shape),
        "fe2eVersion": _FORMAT_VERSION,
        "fe2ePreset": preset,
        "fe2eNormalAxes": style.axes_text,
        "fe2eMetric": int(bool(geometry.get("metric", False))),
        "fe2eUnit": style.unit if geometry.get("metric") else f"near plane distance times {style.scale:g}",
    }
    if geometry.get("assumed"):
        header["fe2eAssumed"] = " ".join(geometry["assumed"])
    for key, name in (("log_range", "fe2eLogRange"), ("log_near", "fe2eLogNear")):
        if geometry.get(key) is not None:
            header[name] = float(geometry[key].reshape(-1)[min(index, geometry[key].numel() - 1)])
    try:
        openexr.File(header, channels).write(str(path))
    except RuntimeError as error:  # what the bindings make of a full disk
        raise OSError(str(error)) from error


def read_exr(path: str | Path) -> dict:
    """Read a file of `write_exr` back as an FE2E_GEOMETRY of one picture, whatever its preset.

    Raises FileNotFoundError, ImportError without the bindings, and ValueError for a file that is no EXR or
    not ours (naming the channels it has).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give an EXR saved by Save Geometry (EXR)")
    openexr = _bindings()
    try:
        # closed on leaving: Windows does not let go of an open file
        with openexr.File(str(path), separate_channels=True) as file:
            header = dict(file.header())
            planes = {
                name: np.array(channel.pixels, dtype=np.float32) for name, channel in file.channels().items()
            }
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: found no readable EXR ({error})") from error
    name = header.get("fe2ePreset")
    if name not in EXR_PRESETS:
        raise ValueError(
            f"{path}: not saved by Save Geometry (EXR), which notes its preset in the header; its channels "
            f"are {', '.join(sorted(planes))}"
        )
    style = EXR_PRESETS[name]
    sizes = {plane.shape for plane in planes.values()}
    if len(sizes) != 1 or len(next(iter(sizes))) != 2:
        raise ValueError(f"{path}: its channels have the sizes {sorted(sizes)}, expected one size; the file is damaged")
    layers = {}
    for key, names in style.channels.items():
        if all(n in planes for n in names):
            stacked = torch.from_numpy(np.stack([planes[n] for n in names], axis=-1))
            layers[key] = stacked.squeeze(-1) if _SIZES[key] == 1 else stacked
    absent = [key for key in _SIZES if key not in layers and key != "confidence"]
    if absent:
        raise ValueError(
            f"{path}: lacks the channels of {', '.join(absent)}; it was cut down by another program"
        )
    geometry: dict = {
        "log_depth": layers["log_depth"],
        # a signed permutation is undone by its transpose
        "normal": layers["normal"] @ torch.tensor(style.axes, dtype=torch.float32),
        "mask": layers["mask"] > 0.5,
        "image": srgb_from_linear(layers["picture"]).clamp(0, 1),
        "depth": layers["depth"] / style.scale,
        "intrinsics": torch.from_numpy(_numbers_of(path, header, "fe2eIntrinsics", (3, 3))),
    }
    if "confidence" in layers:
        geometry["confidence"] = layers["confidence"]
    for key, attribute in (("log_range", "fe2eLogRange"), ("log_near", "fe2eLogNear")):
        if attribute in header:
            geometry[key] = torch.from_numpy(_numbers_of(path, header, attribute, ()))
    geometry = {key: value.unsqueeze(0).contiguous() for key, value in geometry.items()}
    geometry["metric"] = bool(_numbers_of(path, {"fe2eMetric": 0, **header}, "fe2eMetric", ()))
    mark(geometry, assumed=_assumed_of(header))
    return geometry


def _assumed_of(header: dict) -> list[str]:
    """What the file calls assumed, without names that this version does not know."""
    try:
        names = str(header.get("fe2eAssumed", "")).split()
    except ValueError:  # of the binding, for text that is no UTF-8
        return []
    return [name for name in names if name in ASSUMABLE]


def _numbers_of(path: Path, header: dict, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An attribute of the header, float32. Raises ValueError unless it is finite numbers of that shape."""
    try:
        values = np.array(header.get(name), dtype=np.float32)
    except (TypeError, ValueError):
        values = None
    if values is None or values.shape != shape or not np.isfinite(values).all():
        try:
            found = repr(header.get(name))
        except ValueError:  # of the binding, for text that is no UTF-8
            found = f"a damaged {type(header.get(name)).__name__}"
        raise ValueError(f"{path}: its attribute {name} is {found}, expected {shape or 'one'} finite numbers; "
                         "the file is damaged, or another program has changed its header")
    return values


def linear_from_srgb(values: Tensor) -> Tensor:
    """sRGB in [0,1] to linear light (IEC 61966-2-1)."""
    return torch.where(values <= 0.04045, values / 12.92, ((values.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(values: Tensor) -> Tensor:
    """Linear light to sRGB (IEC 61966-2-1), the inverse of `linear_from_srgb`."""
    return torch.where(
        values <= 0.04045 / 12.92, values * 12.92, 1.055 * values.clamp_min(0) ** (1 / 2.4) - 0.055
    )


def _camera_header(intrinsics: Tensor, height: int, width: int) -> dict:
    """The camera in EXR's own terms (screen window, pixel aspect), and in ours.

    EXR's screen window is the picture on a plane at distance 1; its centre is measured with y up.
    """
    k = _numbers(intrinsics)
    fx, fy, cx, cy = float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])
    fov = float(fov_from_focal(fx))
    return {
        "screenWindowWidth": 1.0 / fx,
        "screenWindowCenter": np.array([(0.5 - cx) / fx, (cy - 0.5) / fy], dtype=np.float32),
        "pixelAspectRatio": (fy * height) / (fx * width),
        "worldToCamera": np.eye(4, dtype=np.float32),
        "fe2eIntrinsics": k.numpy().copy(),
        "fe2eFieldOfViewX": fov,
        "fe2eFocalLength35mm": 18.0 / math.tan(math.radians(fov) / 2),
    }


def _numbers(values: Tensor) -> Tensor:
    return values.detach().cpu().to(torch.float32)


def _preset(name: str) -> ExrPreset:
    if name not in EXR_PRESETS:
        raise ValueError(f"preset: found {name!r}, expected one of {', '.join(EXR_PRESETS)}")
    return EXR_PRESETS[name]


def _bindings() -> ModuleType:
    """OpenEXR's Python bindings; not a requirement of the pack because few need them."""
    try:
        import OpenEXR
    except ImportError as error:
        raise ImportError(
            "EXR files need the package OpenEXR, which is not installed; run `pip install OpenEXR` in the "
            "Python environment of ComfyUI and restart it"
        ) from error
    if not hasattr(OpenEXR, "File"):
        raise ImportError("EXR files need OpenEXR 3.3 or newer; run `pip install --upgrade OpenEXR`")
    return OpenEXR
