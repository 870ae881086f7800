"""Pictures to look at: coloured depth, comparisons, clay, histogram."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fe2e_core.colors import COLOR_MAPS, apply_color_map
from ..fe2e_core.comparison import one_batch, side_by_side, wipe
from ..fe2e_core.depth_decoding import DEFAULT_RATIO, NORMALIZE_OVER, PER_IMAGE, DepthStyle, decode_depth
from ..fe2e_core.histogram import depth_histogram, draw_histogram
from ..fe2e_core.images import check_image
from ..fe2e_core.shading import Lamp, clay
from .masks import counted_pixels
from .node import Node
from .types import FE2EGeometryType, require_geometry

_MAPPINGS = ("log", "disparity", "relative")
_SIDE, _STACK, _WIPE = "side by side", "above each other", "wipe"


def _geometry_input() -> io.Input:
    return FE2EGeometryType.Input("geometry", tooltip="From Estimate Depth+Normal or any FE2E node after it.")


def _decoded(geometry, mapping, far_near_ratio, low, high, normalize, mask, near_white):
    require_geometry(geometry)
    style = DepthStyle(
        mapping, near_white=near_white, ratio=far_near_ratio, low=low, high=high, normalize=normalize
    )
    return decode_depth(
        geometry["log_depth"],
        counted_pixels(geometry["mask"], mask),
        style,
        depth=geometry.get("depth"),
        log_range=geometry.get("log_range"),
        log_near=geometry.get("log_near"),
        metric=bool(geometry.get("metric", False)),
    )


def _image(picture: torch.Tensor) -> torch.Tensor:
    return picture.to(device=comfy.model_management.intermediate_device(), dtype=torch.float32).contiguous()


class FE2EColorizeDepth(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EColorizeDepth",
            display_name="Colorize Depth",
            category="FE2E/pictures",
            description="Depth in colours, for eyes and papers. Spectral with near in red is how the paper "
            "shows depth.",
            search_aliases=["spectral", "turbo", "viridis", "depth colors", "fe2e"],
            inputs=[
                _geometry_input(),
                io.Combo.Input(
                    "color_map",
                    options=list(COLOR_MAPS),
                    default="spectral",
                    tooltip="The colours, near to far.",
                ),
                io.Boolean.Input("reverse", default=False, tooltip="Run the colours from far to near."),
                io.Combo.Input(
                    "mapping",
                    options=list(_MAPPINGS),
                    default="log",
                    tooltip="What is spread evenly over the colours: the logarithm of depth, 1 / depth, or "
                    "depth.",
                ),
                io.Float.Input(
                    "far_near_ratio",
                    default=DEFAULT_RATIO,
                    min=1.001,
                    max=10000.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Far plane / near plane where the geometry does not know it. Not used by log.",
                ),
                io.Float.Input(
                    "clip_low",
                    default=0.0,
                    min=0.0,
                    max=49.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Percentage of the pixels, at the low end, that may be clipped.",
                ),
                io.Float.Input(
                    "clip_high",
                    default=100.0,
                    min=51.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Percentile that becomes the high end.",
                ),
                io.Combo.Input(
                    "normalize",
                    options=list(NORMALIZE_OVER),
                    default=PER_IMAGE,
                    advanced=True,
                    tooltip="Find the ends per image, or once for the batch so that a clip keeps its "
                    "colours.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White where pixels count; the rest becomes black."
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Colours, the input's exact size.")],
        )

    @classmethod
    def execute(
        cls, geometry, color_map, reverse, mapping, far_near_ratio, clip_low, clip_high, normalize, mask=None
    ) -> io.NodeOutput:
        decoded = _decoded(geometry, mapping, far_near_ratio, clip_low, clip_high, normalize, mask, False)
        colors = apply_color_map(decoded.picture, color_map, reverse=reverse)
        counted = counted_pixels(geometry["mask"], mask).to(colors.device).unsqueeze(-1)
        return io.NodeOutput(_image(torch.where(counted, colors, torch.zeros_like(colors))))


class FE2ECompare(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ECompare",
            display_name="Compare Pictures",
            category="FE2E/pictures",
            description="Up to four pictures beside or above each other, or a wipe between the first two.",
            search_aliases=["side by side", "wipe", "before after", "compare", "fe2e"],
            inputs=[
                io.Image.Input("image_a", tooltip="Gives the size of the result."),
                io.Image.Input("image_b", tooltip="Scaled to fit the first."),
                io.Combo.Input(
                    "layout", options=[_SIDE, _STACK, _WIPE], default=_SIDE, tooltip="How they are shown."
                ),
                io.Int.Input(
                    "gap",
                    default=4,
                    min=0,
                    max=256,
                    tooltip="White pixels between pictures; the wipe's line.",
                ),
                io.Float.Input(
                    "position",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Wipe only: 0 shows only the second picture, 1 only the first.",
                ),
                io.Float.Input(
                    "angle",
                    default=0.0,
                    min=-180.0,
                    max=180.0,
                    step=1.0,
                    tooltip="Wipe only: 0 has the first picture on the left, 90 on top.",
                ),
                io.Image.Input("image_c", optional=True, tooltip="A third picture (not for the wipe)."),
                io.Image.Input("image_d", optional=True, tooltip="A fourth picture (not for the wipe)."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="All pictures in one.")],
        )

    @classmethod
    def execute(
        cls, image_a, image_b, layout, gap, position, angle, image_c=None, image_d=None
    ) -> io.NodeOutput:
        given = {"image_a": image_a, "image_b": image_b, "image_c": image_c, "image_d": image_d}
        given = {name: check_image(picture, name) for name, picture in given.items() if picture is not None}
        if layout == _WIPE:
            a, b = one_batch({name: given[name] for name in ("image_a", "image_b")})
            return io.NodeOutput(_image(wipe(a, b, position=position, angle=angle, line=gap)))
        return io.NodeOutput(_image(side_by_side(one_batch(given), gap=gap, vertical=layout == _STACK)))


class FE2EClay(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EClay",
            display_name="Clay Rendering",
            category="FE2E/pictures",
            description="The normals as matt clay under a lamp that can be moved. Shows at a glance what a "
            "surface is like.",
            search_aliases=["relight", "clay", "shading", "lambert", "matcap", "fe2e"],
            inputs=[
                _geometry_input(),
                io.Float.Input(
                    "light_x",
                    default=0.25,
                    min=-5.0,
                    max=6.0,
                    step=0.01,
                    tooltip="Lamp position: 0 is the picture's left edge, 1 its right edge.",
                ),
                io.Float.Input(
                    "light_y",
                    default=0.1,
                    min=-5.0,
                    max=6.0,
                    step=0.01,
                    tooltip="Lamp position: 0 is the picture's top edge, 1 its bottom edge.",
                ),
                io.Float.Input(
                    "light_distance",
                    default=0.6,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Lamp in front of the picture, in picture widths. Near lamps model, far ones "
                    "light evenly.",
                ),
                io.Float.Input(
                    "ambient", default=0.15, min=0.0, max=1.0, step=0.01, tooltip="Light in the shadows."
                ),
                io.Float.Input(
                    "gloss", default=0.15, min=0.0, max=1.0, step=0.01, tooltip="Strength of highlights."
                ),
                io.Mask.Input("mask", optional=True, tooltip="White where clay is drawn; the rest is black."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Clay, the input's exact size.")],
        )

    @classmethod
    def execute(cls, geometry, light_x, light_y, light_distance, ambient, gloss, mask=None) -> io.NodeOutput:
        require_geometry(geometry)
        lamp = Lamp(x=light_x, y=light_y, distance=light_distance, ambient=ambient, gloss=gloss)
        return io.NodeOutput(_image(clay(geometry["normal"], counted_pixels(geometry["mask"], mask), lamp)))


class FE2EHistogram(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EHistogram",
            display_name="Depth Histogram",
            category="FE2E/pictures",
            description="How depth is distributed over the batch, with its 2 %, 50 % and 98 % points.",
            search_aliases=["histogram", "statistics", "depth range", "fe2e"],
            inputs=[
                _geometry_input(),
                io.Combo.Input(
                    "mapping",
                    options=list(_MAPPINGS),
                    default="log",
                    tooltip="Count the network's log-depth, 1 / depth, or depth (metres where known).",
                ),
                io.Int.Input("bins", default=256, min=2, max=4096, tooltip="Number of bars."),
                io.Int.Input("width", default=768, min=64, max=4096, tooltip="Width of the picture."),
                io.Int.Input("height", default=384, min=64, max=4096, tooltip="Height of the picture."),
                io.Float.Input(
                    "far_near_ratio",
                    default=DEFAULT_RATIO,
                    min=1.001,
                    max=10000.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Far plane / near plane where the geometry does not know it. Not used by log.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="White where pixels are counted."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The histogram, with lines at 2, 50 and 98 %."),
                io.String.Output(
                    display_name="percentiles", tooltip="One line for each of 2, 25, 50, 75 and 98 %."
                ),
            ],
        )

    @classmethod
    def execute(cls, geometry, mapping, bins, width, height, far_near_ratio, mask=None) -> io.NodeOutput:
        decoded = _decoded(geometry, mapping, far_near_ratio, 0.0, 100.0, PER_IMAGE, mask, False)
        counted = counted_pixels(geometry["mask"], mask).to(decoded.values.device)
        histogram = depth_histogram(decoded.values, counted, bins)
        unit = "m" if mapping == "relative" and decoded.metric else ""
        picture = draw_histogram(histogram, width, height, unit=unit)
        text = "\n".join(f"{part} %: {value:.6g}" for part, value in histogram.percentiles.items())
        return io.NodeOutput(_image(picture.unsqueeze(0)), text)


NODES: list[type[io.ComfyNode]] = [FE2EColorizeDepth, FE2ECompare, FE2EClay, FE2EHistogram]
