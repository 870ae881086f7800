"""Estimate Depth+Normal: the only node that runs the network."""

from __future__ import annotations

import comfy.model_management as mm
from comfy_api.latest import io
from torch import Tensor

from ..fe2e_core import estimation, sizing
from ..fe2e_core.depth_decoding import DepthStyle, decode_depth
from ..fe2e_core.estimation import TiledSize, choose_size, passes
from ..fe2e_core.geometry import encode_normal
from ..fe2e_core.images import check_image, check_mask
from .node import Node
from .prediction import Run
from .types import FE2EGeometryType, FE2EModel, FE2EModelType

TRAINED, NATIVE, LONGEST, REFERENCE = "trained size", "native size", "longest side", "reference sizes"
TILED = "tiled (large pictures)"
_MODES = {TRAINED: "trained", NATIVE: "native", LONGEST: "longest_side", REFERENCE: "reference", TILED: estimation.TILED}


def estimate(model: FE2EModel, image: Tensor, mask: Tensor, size: sizing.Frame | TiledSize,
             chunk: int = 0) -> dict[str, Tensor]:
    """Run the network over a checked batch and return FE2E_GEOMETRY at exactly the pictures' size.

    image (B,H,W,3) in [0,1], mask (B,H,W) bool. chunk: pictures (or tiles) at once, 0 for as many as memory allows;
    running out of memory halves it and goes on. Raises RuntimeError when not even one picture fits.
    """
    run = Run(model, chunk, image.shape[0] * passes(size))
    log_depth, normal = estimation.estimate(run.predict, image, size)
    return {"log_depth": log_depth, "normal": normal, "mask": mask, "image": image}


class FE2EEstimate(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EEstimate",
            display_name="Estimate Depth+Normal",
            category="FE2E",
            description="Turns each picture into depth and surface normals in one pass. The results have exactly the picture's size. "
                        "The same picture with the same settings always gives the same result.",
            search_aliases=["depth", "depth map", "normal map", "controlnet depth", "zoe", "midas", "depth anything", "marigold",
                            "surface normals", "geometry estimation", "fe2e"],
            inputs=[
                FE2EModelType.Input("fe2e_model", tooltip="From 'Load FE2E Model'."),
                io.Image.Input("image", tooltip="One picture or a batch of any length."),
                io.DynamicCombo.Input("size", tooltip="The size the network works at. The results always come back at the picture's own size.", options=[
                    io.DynamicCombo.Option(TRAINED, []),
                    io.DynamicCombo.Option(NATIVE, []),
                    io.DynamicCombo.Option(LONGEST, [
                        io.Int.Input("longest_side", default=1024, min=64, max=8192, step=16,
                                     tooltip="Longer side in pixels that the network works at."),
                    ]),
                    io.DynamicCombo.Option(REFERENCE, []),
                    io.DynamicCombo.Option(TILED, [
                        io.Float.Input("detail", default=4.0, min=1.0, max=16.0, step=0.5,
                                       tooltip="How many times larger than the trained size the picture is worked on, in tiles; never "
                                               "above its own size. Beyond 4 a tile shows too little to be understood."),
                        io.Float.Input("overlap", default=0.25, min=0.1, max=0.5, step=0.05,
                                       tooltip="How much of a tile its neighbours cover too. More is smoother and slower."),
                    ]),
                ]),
                io.Boolean.Input("near_white", default=True, label_on="near is white", label_off="far is white",
                                 tooltip="How the depth picture is drawn. Depth ControlNets expect near to be white."),
                io.Int.Input("chunk", default=0, min=0, max=256, advanced=True,
                             tooltip="Pictures worked on at once. 0: as many as memory allows, fewer when it runs out."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Pixels that count (white). Left-out pixels are still predicted, but not used to scale pictures or to "
                                      "measure anything. The mask of 'Load Image' is white where a picture is transparent: put "
                                      "'InvertMask' between."),
            ],
            outputs=[
                FE2EGeometryType.Output(display_name="geometry", tooltip="Raw log-depth and normals, for the other FE2E nodes."),
                io.Image.Output(display_name="depth", tooltip="A ready depth picture (disparity), for ControlNet and for looking at."),
                io.Image.Output(display_name="normal", tooltip="A ready normal map, OpenGL colours (green is up). For a normal ControlNet "
                                                               "use 'Normal Colorize', DSINE / BAE."),
            ],
        )

    @classmethod
    def execute(cls, fe2e_model: FE2EModel, image: Tensor, size: dict, near_white: bool = True, chunk: int = 0,
                mask: Tensor | None = None) -> io.NodeOutput:
        if not isinstance(fe2e_model, FE2EModel):
            raise ValueError(f"fe2e_model: found {type(fe2e_model).__name__}; connect 'Load FE2E Model'")
        image = check_image(image)
        counted = check_mask(mask, image)
        height, width = image.shape[1:3]
        pixels = fe2e_model.info.height * fe2e_model.info.width
        given = {key: value for key, value in size.items() if key != "size"}
        frame = choose_size(height, width, _MODES[size["size"]], pixels=pixels, **given)
        geometry = estimate(fe2e_model, image, counted, frame, chunk)
        depth = decode_depth(geometry["log_depth"], geometry["mask"], DepthStyle("disparity", near_white=near_white)).picture
        device = mm.intermediate_device()
        return io.NodeOutput(geometry, depth[..., None].expand(-1, -1, -1, 3).contiguous().to(device),
                             encode_normal(geometry["normal"], "OpenGL").to(device))


NODES: list[type[io.ComfyNode]] = [FE2EEstimate]
