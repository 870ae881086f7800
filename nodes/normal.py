"""Normal Colorize: the geometry's normals as colours in a named convention."""

from __future__ import annotations

import comfy.model_management
from comfy_api.latest import io

from ..fe2e_core.colors import normal_picture, parse_color
from ..fe2e_core.geometry import NORMAL_CONVENTIONS
from .masks import counted_pixels
from .node import Node
from .types import FE2EGeometryType, require_geometry

FACING = "facing the camera"
CUSTOM = "custom"


class FE2ENormalColorize(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ENormalColorize",
            display_name="Normal Colorize",
            category="FE2E",
            description=(
                "Draws the normals in the convention another program expects. OpenGL (green up): Blender, "
                "Unity, glTF. DirectX (green down): Unreal. OpenCV: x right, y down, z away. DSINE / BAE: "
                "what normal ControlNets were trained on."
            ),
            search_aliases=["normal map", "normals", "bae", "dsine", "opengl", "directx", "fe2e"],
            inputs=[
                FE2EGeometryType.Input(
                    "geometry", tooltip="From Estimate Depth+Normal or any FE2E node after it."
                ),
                io.Combo.Input(
                    "convention",
                    options=list(NORMAL_CONVENTIONS),
                    default="OpenGL",
                    tooltip="OpenGL: red right, green up, blue toward the camera. DirectX: green down. "
                    "OpenCV: red right, green down, blue away. DSINE / BAE: red left, green up, blue toward "
                    "the camera.",
                ),
                io.Combo.Input(
                    "background",
                    options=[FACING, "black", "white", "grey", CUSTOM],
                    default=FACING,
                    tooltip="Colour of pixels outside the mask. 'Facing the camera' is the neutral colour of "
                    "the chosen convention.",
                ),
                io.String.Input(
                    "background_color",
                    default="#8080ff",
                    advanced=True,
                    tooltip="For the custom background: #rrggbb.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White where normals are drawn; the rest is background."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="normal", tooltip="Colours in [0, 1], the input's exact size.")
            ],
        )

    @classmethod
    def execute(cls, geometry, convention, background, background_color, mask=None) -> io.NodeOutput:
        require_geometry(geometry, "normal", "mask")
        fill = None
        if background != FACING:
            fill = parse_color(background_color, "background_color") if background == CUSTOM else parse_color(background)
        picture = normal_picture(geometry["normal"], counted_pixels(geometry["mask"], mask), convention, fill)
        return io.NodeOutput(picture.to(comfy.model_management.intermediate_device()))


NODES: list[type[io.ComfyNode]] = [FE2ENormalColorize]
