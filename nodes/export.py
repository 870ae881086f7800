"""Saving and loading geometry as files: NPZ, multi-layer EXR, 16-bit PNG."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ..fe2e_core.exr import EXR_PRESETS, read_exr, write_exr
from ..fe2e_core.npz import write_npz
from ..fe2e_core.png16 import encode_png16
from .assumed import assumed_inputs, complete
from .node import Node
from .saving import save_next
from .types import FE2EGeometryType, require_geometry

_NO_FILES = "(no .exr file in the input folder)"
logger = logging.getLogger(__name__)

_MOST_CLIPPED = 0.25  # share of values; beyond it is no picture with a few bright spots
_UNIT, _MILLIMETRES = "0 to 1 becomes black to white", "metres become millimetres (up to 65.535 m)"


class FE2ESaveNPZ(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ESaveNPZ",
            display_name="Save Geometry (NPZ)",
            category="FE2E/export",
            description=(
                "Saves the raw floats of the geometry, one NumPy archive for the whole batch. Keys: "
                "log_depth, normal (OpenCV axes), mask, image and, once known, depth, log_range, log_near, "
                "metric, intrinsics, confidence. Read it with numpy.load; it holds no pickles."
            ),
            search_aliases=["npz", "numpy", "raw depth", "raw normals", "export", "fe2e"],
            is_output_node=True,
            inputs=[
                FE2EGeometryType.Input(
                    "geometry", tooltip="From Estimate Depth+Normal or any FE2E node after it."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="FE2E/geometry",
                    tooltip="Name, or subfolder and name, in ComfyUI's output folder. A number is added; "
                    "nothing is overwritten.",
                ),
                io.Boolean.Input("include_image", default=True, tooltip="Store the picture as well."),
                io.Boolean.Input(
                    "compress",
                    default=True,
                    advanced=True,
                    tooltip="Lossless. Off is faster and about twice as large.",
                ),
            ],
            outputs=[
                FE2EGeometryType.Output(display_name="geometry", tooltip="What came in, to wire on."),
            ],
        )

    @classmethod
    def execute(cls, geometry, filename_prefix, include_image, compress) -> io.NodeOutput:
        require_geometry(geometry)
        height, width = geometry["log_depth"].shape[1:3]
        saved = save_next(
            filename_prefix,
            ".npz",
            lambda path: write_npz(path, geometry, image=include_image, compress=compress),
            width=width,
            height=height,
        )
        return io.NodeOutput(geometry, ui={"files": [saved]})


class FE2ESaveEXR(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ESaveEXR",
            display_name="Save Geometry (EXR)",
            category="FE2E/export",
            description=(
                "One multi-layer 32-bit float EXR per picture: linear picture, depth Z, normals, mask, "
                "confidence, with the camera in the header. Presets name channels and turn axes the way "
                "Blender, Nuke or Unreal expect. Needs the Python package OpenEXR."
            ),
            search_aliases=["exr", "openexr", "blender", "nuke", "unreal", "z pass", "depth pass", "fe2e"],
            is_output_node=True,
            inputs=[
                FE2EGeometryType.Input(
                    "geometry", tooltip="From Estimate Depth+Normal or any FE2E node after it."
                ),
                io.Combo.Input(
                    "preset",
                    options=list(EXR_PRESETS),
                    default=next(iter(EXR_PRESETS)),
                    tooltip="FE2E: Z and N.x N.y N.z in OpenCV axes, metres. Blender: a view layer, y up. "
                    "Nuke: rgba, depth.Z and N, y up. Unreal: centimetres, x forward, z up. All load again "
                    "with Load Geometry (EXR).",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="FE2E/geometry",
                    tooltip="Name, or subfolder and name, in ComfyUI's output folder. A number is added; "
                    "nothing is overwritten.",
                ),
                *assumed_inputs(),
            ],
            outputs=[FE2EGeometryType.Output(display_name="geometry", tooltip="What came in, to wire on.")],
        )

    @classmethod
    def execute(cls, geometry, preset, filename_prefix, fov, far_near_ratio) -> io.NodeOutput:
        full = complete(geometry, fov, far_near_ratio)
        count, height, width = full["log_depth"].shape
        saved = []
        for index in range(count):
            comfy.model_management.throw_exception_if_processing_interrupted()
            saved.append(
                save_next(
                    filename_prefix,
                    ".exr",
                    lambda path, index=index: write_exr(path, full, index, preset),
                    width=width,
                    height=height,
                )
            )
        return io.NodeOutput(geometry, ui={"files": saved})


class FE2ELoadEXR(Node):
    lists_files = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ELoadEXR",
            display_name="Load Geometry (EXR)",
            category="FE2E/export",
            description="Reads a file of Save Geometry (EXR), of any preset, back into a geometry.",
            search_aliases=["exr", "openexr", "import", "load depth", "fe2e"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_exr_files() or [_NO_FILES],
                    tooltip="An .exr in ComfyUI's input folder, its output folder or FE2E in that. Press R "
                    "to see new files.",
                ),
            ],
            outputs=[FE2EGeometryType.Output(display_name="geometry", tooltip="As it was saved; one picture.")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(read_exr(_exr_path(file)))

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        """Changes when the file does, so that a new render under the same name is read again."""
        try:
            status = os.stat(_exr_path(file))
        except (OSError, ValueError):
            return file
        return f"{file}:{status.st_mtime_ns}:{status.st_size}"


def _exr_files() -> list[str]:
    """Names under the input folder, then those of the output folder with ComfyUI's mark for it.

    Of the output folder only the top and its FE2E subfolder are looked through: it may hold a hundred
    thousand pictures, and this runs whenever the interface asks for the nodes.
    """
    source, target = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())
    found = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.exr"))]
    saved = [*sorted(target.glob("*.exr")), *sorted((target / "FE2E").rglob("*.exr"))]
    return found + [f"{path.relative_to(target).as_posix()} [output]" for path in saved]


def _exr_path(name: str) -> str:
    """Full path of a listed name. Raises ValueError for one outside ComfyUI's folders or none at all."""
    if name == _NO_FILES:
        raise ValueError("file: there is no .exr file in ComfyUI's input folder; put one there and press R")
    base = (
        folder_paths.get_output_directory()
        if name.endswith(" [output]")
        else folder_paths.get_input_directory()
    )
    path = os.path.abspath(os.path.join(base, name.removesuffix(" [output]")))
    if os.path.commonpath([os.path.abspath(base), path]) != os.path.abspath(base):
        raise ValueError(f"file: found {name!r}, expected a file inside ComfyUI's input or output folder")
    return path


class FE2ESavePNG16(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ESavePNG16",
            display_name="Save Picture (16-bit PNG)",
            category="FE2E/export",
            description=(
                "Saves a depth or normal picture with 65,536 levels instead of 256, which shows no bands "
                "when used for displacement. A picture with three equal channels is saved as grey."
            ),
            search_aliases=["png 16 bit", "depth png", "banding", "displacement", "fe2e"],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "image", tooltip="From Log-Depth Decode or Normal Colorize; every picture of the batch."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="FE2E/picture",
                    tooltip="Name, or subfolder and name, in ComfyUI's output folder. A number is added; "
                    "nothing is overwritten.",
                ),
                io.Combo.Input(
                    "values",
                    options=[_UNIT, _MILLIMETRES],
                    default=_UNIT,
                    tooltip="For pictures the first. The second is for the raw output of the metric preset: "
                    "files as depth cameras write them.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="What came in, to wire on.")],
        )

    @classmethod
    def execute(cls, image, filename_prefix, values) -> io.NodeOutput:
        scale = 1000.0 if values == _MILLIMETRES else 65535.0
        text = {"Software": "FE2E", "Comment": "depth in millimetres" if values == _MILLIMETRES else "0 to 1"}
        _check_range(image, values)
        saved = []
        for picture in image:
            comfy.model_management.throw_exception_if_processing_interrupted()
            data = encode_png16(_grey_if_equal(picture), scale=scale, text=text)
            height, width = picture.shape[:2]
            saved.append(save_next(filename_prefix, ".png", _writer(data), width=width, height=height))
        return io.NodeOutput(image, ui={"images": saved})


def _check_range(image: torch.Tensor, values: str) -> None:
    """Raises ValueError for raw values taken for a picture; says how much of metres a file of millimetres cannot hold."""
    top = 65.535 if values == _MILLIMETRES else 1.0
    beyond = float(((image > top) | (image < 0)).float().mean())
    if values == _UNIT and beyond > _MOST_CLIPPED:
        raise ValueError(
            f"image: {100 * beyond:.0f} % of its values lie outside 0 to 1 and would be cut off; connect a picture, choose "
            f"{_MILLIMETRES!r} for metres, or keep raw values by Save Geometry (EXR)"
        )
    if beyond > 0.01:
        logger.warning("FE2E: %.0f %% of the values lie outside 0 to %g and are cut off in the PNG", 100 * beyond, top)


def _grey_if_equal(picture: torch.Tensor) -> torch.Tensor:
    """(H,W,C) -> (H,W) where the channels are the same, else (H,W,3)."""
    red = picture[..., :1]
    return (
        picture[..., 0]
        if torch.equal(red.expand_as(picture[..., :3]), picture[..., :3])
        else picture[..., :3]
    )


def _writer(data: bytes):
    def write(path: str) -> None:
        with open(path, "wb") as file:
            file.write(data)

    return write


NODES: list[type[io.ComfyNode]] = [FE2ESaveNPZ, FE2ESaveEXR, FE2ELoadEXR, FE2ESavePNG16]
