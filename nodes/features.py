"""FE2E Feature View: what a block of the transformer has made of the picture (paper, Fig. 3 and appendix B)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import comfy.model_management as mm
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..fe2e_core import sizing
from ..fe2e_core.colors import apply_color_map
from ..fe2e_core.images import check_image
from ..fe2e_core.packing import PATCH
from . import backend
from .node import Node
from .types import FE2EModel, FE2EModelType

FIRST, MIDDLE, LATE, NUMBER = "block 1", "block 20", "block 35", "block number"
_PAPER_BLOCKS = {FIRST: 1, MIDDLE: 20, LATE: 35}
_PAPER_TOTAL = 57
"""Blocks of the released transformer: 19 double, then 38 single."""


def block_position(number: int, double: int, single: int) -> tuple[str, int]:
    """ComfyUI's name of block `number`, counted from 1, double blocks before single ones: ("single_block", 0).

    Raises ValueError for a number that the transformer does not have.
    """
    if not 1 <= number <= double + single:
        raise ValueError(f"block: found number {number}, but this transformer has {double + single} blocks "
                         f"({double} double, then {single} single), counted from 1")
    return ("double_block", number - 1) if number <= double else ("single_block", number - 1 - double)


def scaled_block(number: int, total: int) -> int:
    """The block of a transformer with `total` blocks that lies as deep as block `number` of the released one."""
    return max(1, round(number * total / _PAPER_TOTAL))


def feature_norms(model: FE2EModel, image_latent: Tensor, position: tuple[str, int]) -> Tensor:
    """L2 norms over the channels of what one block puts out, in the transformer's usual pass.

    image_latent (B,C,h,w); position: from `block_position`. Returns (B, 2, h/2, w/2) float32 on the CPU: the
    output tokens of the depth half and of the normal half.
    """
    b, _, h, w = image_latent.shape
    rows, columns = h // PATCH, w // PATCH
    seen: list[Tensor] = []
    patcher = model.patcher.clone()
    earlier = patcher.model_options.get("transformer_options", {}).get("patches_replace", {}).get("dit", {}).get(position)

    def look(arguments: dict, extra: dict[str, Callable]) -> dict:
        # another patch of this block keeps its place; only its result is looked at
        out = extra["original_block"](arguments) if earlier is None else earlier(arguments, extra)
        # single blocks hold the text tokens first, double blocks keep them apart
        picture = out["img"][:, -2 * rows * columns:]
        seen.append(torch.linalg.vector_norm(picture.float(), dim=-1).cpu())
        return out

    patcher.set_model_patch_replace(look, "dit", *position)
    backend.transform(dataclasses.replace(model, patcher=patcher), image_latent)
    return seen[-1].reshape(b, 2, rows, columns)


class FE2EFeatureView(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EFeatureView",
            display_name="Feature View",
            category="FE2E/pictures",
            description="Shows what a block of the transformer has made of the picture: the length of its features at every place, in "
                        "rainbow colours, for the depth half and the normal half (Fig. 3 of the paper).",
            search_aliases=["features", "attention", "activations", "dit blocks", "visualize", "fe2e"],
            inputs=[
                FE2EModelType.Input("fe2e_model", tooltip="From 'Load FE2E Model'."),
                io.Image.Input("image", tooltip="One picture or a batch. Worked on at the model's trained size."),
                io.DynamicCombo.Input("block", tooltip="Which block, counted from 1: double blocks first, then single ones. 1, 20 and 35 are "
                                      "those of the released model; in a smaller one the blocks equally deep are taken.", options=[
                    io.DynamicCombo.Option(FIRST, []),
                    io.DynamicCombo.Option(MIDDLE, []),
                    io.DynamicCombo.Option(LATE, []),
                    io.DynamicCombo.Option(NUMBER, [
                        io.Int.Input("number", default=1, min=1, max=1000, tooltip="This very block of the loaded model, from 1."),
                    ]),
                ]),
            ],
            outputs=[
                io.Image.Output(display_name="depth_features", tooltip="Tokens that become depth, at the picture's size."),
                io.Image.Output(display_name="normal_features", tooltip="Tokens that become normals, at the picture's size."),
                io.String.Output(display_name="report", tooltip="Which block was shown, and how long its features are."),
            ],
        )

    @classmethod
    def execute(cls, fe2e_model: FE2EModel, image: Tensor, block: dict) -> io.NodeOutput:
        if not isinstance(fe2e_model, FE2EModel):
            raise ValueError(f"fe2e_model: found {type(fe2e_model).__name__}; connect 'Load FE2E Model'")
        image = check_image(image)
        network = fe2e_model.patcher.model.diffusion_model
        double, single = len(network.double_blocks), len(network.single_blocks)
        choice = block["block"]
        number = int(block["number"]) if choice == NUMBER else scaled_block(_PAPER_BLOCKS[choice], double + single)
        position = block_position(number, double, single)
        height, width = image.shape[1:3]
        frame = sizing.fit(height, width, "trained", pixels=fe2e_model.info.height * fe2e_model.info.width)
        norms = []
        for index in range(image.shape[0]):
            mm.throw_exception_if_processing_interrupted()
            latent = backend.encode(fe2e_model, sizing.to_model(image[index:index + 1], frame))
            norms.append(feature_norms(fe2e_model, latent, position))
        maps = torch.cat(norms)
        kind = position[0].replace("_", " ")
        report = (f"block {number} of {double + single} ({kind} {position[1] + 1}); feature length "
                  f"{float(maps.min()):.4g} to {float(maps.max()):.4g}, mean {float(maps.mean()):.4g}")
        pictures = [_picture(maps[:, half], frame) for half in (0, 1)]
        return io.NodeOutput(*pictures, report, ui={"text": (report,)})


def _picture(norms: Tensor, frame: sizing.Frame) -> Tensor:
    """(B,h,w) lengths, stretched to [0,1] per picture -> rainbow colours (B,H,W,3) at the picture's size."""
    full = F.interpolate(norms.unsqueeze(1), size=(frame.padded_height, frame.padded_width), mode="bilinear")[:, 0]
    values = sizing.from_model(full, frame)
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    colours = apply_color_map((values - low) / (high - low).clamp_min(1e-12), "rainbow")
    return colours.to(mm.intermediate_device())


NODES: list[type[io.ComfyNode]] = [FE2EFeatureView]
