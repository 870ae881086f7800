"""Log-Depth Decode: the geometry's log-depth as a picture for a purpose, as numbers, and as distances."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fe2e_core.assumptions import mark
from ..fe2e_core.depth_decoding import (
    DEFAULT_RATIO,
    GIVEN,
    KNOWN,
    MAPPINGS,
    NORMALIZE_OVER,
    PER_IMAGE,
    PRESETS,
    RANGE_SOURCES,
    DepthStyle,
    decode_depth,
)
from .masks import counted_pixels
from .node import Node
from .types import FE2EGeometryType, require_geometry

CUSTOM = "custom (use mapping, white and clipping below)"
NEAR_WHITE, FAR_WHITE = "near is white", "far is white"


class FE2ELogDepthDecode(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ELogDepthDecode",
            display_name="Log-Depth Decode",
            category="FE2E",
            description=(
                "Turns the geometry's log-depth into a depth picture for a purpose and into raw values. The "
                "network says how depths compare but not how many times farther the far plane is than the "
                "near one; give that as a ratio or in metres, or let an earlier node (calibrate, anchor) "
                "find it."
            ),
            search_aliases=["depth", "depth map", "disparity", "metric depth", "controlnet depth", "fe2e"],
            inputs=[
                FE2EGeometryType.Input(
                    "geometry", tooltip="From Estimate Depth+Normal or any FE2E node after it."
                ),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=next(iter(PRESETS)),
                    tooltip="What the picture is for. A preset sets mapping, white and clipping; custom uses "
                    "the inputs.",
                ),
                io.Combo.Input(
                    "range",
                    options=list(RANGE_SOURCES),
                    default=KNOWN,
                    advanced=True,
                    tooltip="Where the far plane comes from. 'What the geometry knows' uses a calibrated or "
                    "anchored range when there is one and the inputs below otherwise; the metric preset "
                    "takes it only if it is in metres.",
                ),
                io.Float.Input(
                    "far_near_ratio",
                    default=DEFAULT_RATIO,
                    min=1.001,
                    max=10000.0,
                    step=0.1,
                    tooltip="How many times farther the far plane (98 % of the pixels are nearer) is than "
                    "the near plane (2 % are nearer). About 5 for a room, 40 for a street. For the disparity "
                    "and relative mappings.",
                ),
                io.Float.Input(
                    "near",
                    default=1.0,
                    min=0.0,
                    max=1000000.0,
                    step=0.01,
                    tooltip="Metres to the near plane (2 % of the pixels are nearer). For the metric "
                    "mapping.",
                ),
                io.Float.Input(
                    "far",
                    default=10.0,
                    min=0.0,
                    max=1000000.0,
                    step=0.01,
                    tooltip="Metres to the far plane (98 % of the pixels are nearer). Must be larger than "
                    "near.",
                ),
                io.Combo.Input(
                    "normalize",
                    options=list(NORMALIZE_OVER),
                    default=PER_IMAGE,
                    advanced=True,
                    tooltip="Black and white are found per image, or once for the whole batch so that a clip "
                    "keeps its brightness. Concerns the picture only, never the raw values.",
                ),
                io.Combo.Input(
                    "mapping",
                    options=list(MAPPINGS),
                    default=MAPPINGS[0],
                    advanced=True,
                    tooltip="Custom preset only. disparity: 1 / depth. log: as the network said, -1 near to "
                    "1 far. relative: depth in near-plane units. metric: metres.",
                ),
                io.Combo.Input(
                    "white",
                    options=[NEAR_WHITE, FAR_WHITE],
                    default=NEAR_WHITE,
                    advanced=True,
                    tooltip="Custom preset only. Which end of the picture is white. Depth ControlNets expect "
                    "near.",
                ),
                io.Float.Input(
                    "clip_low",
                    default=0.1,
                    min=0.0,
                    max=49.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Custom preset only. Percentage of the pixels, at the low end, that may be "
                    "clipped.",
                ),
                io.Float.Input(
                    "clip_high",
                    default=99.9,
                    min=51.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Custom preset only. Percentile that becomes the high end of the picture.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where pixels count. The picture is normalised inside it and shows the "
                    "rest as far.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="depth", tooltip="Grey picture in [0, 1], three equal channels."
                ),
                io.Image.Output(
                    display_name="raw",
                    tooltip="Unclipped float values in three equal channels: metres, near-plane units, 1 / "
                    "depth or the label, by the mapping. Save as 32-bit EXR (linear), not as PNG.",
                ),
                FE2EGeometryType.Output(
                    display_name="geometry",
                    tooltip="The geometry with depth, log_range, log_near and metric added, for meshes and "
                    "exports. The log mapping adds nothing to a geometry without a range.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        geometry,
        preset,
        range,
        far_near_ratio,
        near,
        far,
        normalize,
        mapping,
        white,
        clip_low,
        clip_high,
        mask=None,
    ) -> io.NodeOutput:
        require_geometry(geometry, "log_depth", "mask")
        if preset == CUSTOM:
            base = DepthStyle(mapping, near_white=white == NEAR_WHITE, low=clip_low, high=clip_high)
        elif preset in PRESETS:
            base = PRESETS[preset]
        else:
            raise ValueError(f"preset: found {preset!r}, expected one of {', '.join([*PRESETS, CUSTOM])}")
        # Only the numbers the mapping uses are checked: a metric near and far must not stop a disparity
        # picture.
        if base.mapping == "metric":
            numbers = {"near": near, "far": far}
        else:
            numbers = {"ratio": far_near_ratio}
        style = replace(base, range_from=range, normalize=normalize, **numbers)
        decoded = decode_depth(
            geometry["log_depth"],
            counted_pixels(geometry["mask"], mask),
            style,
            depth=geometry.get("depth"),
            log_range=geometry.get("log_range"),
            log_near=geometry.get("log_near"),
            metric=bool(geometry.get("metric", False)),
        )
        result = dict(geometry)
        if decoded.depth is not None:
            result["depth"], result["metric"] = decoded.depth, decoded.metric
        if decoded.log_range is not None:
            result["log_range"], result["log_near"] = decoded.log_range, decoded.log_near
            if decoded.assumed:
                mark(result, assumed=["log_range"])
            elif range == GIVEN or (base.mapping == "metric" and not geometry.get("metric", False)):
                mark(result, found=["log_range"])
        return io.NodeOutput(_grey(decoded.picture), _grey(decoded.values), result)


def _grey(values: torch.Tensor) -> torch.Tensor:
    """(B,H,W) -> IMAGE with three equal channels, where ComfyUI keeps intermediate results, always
    float32."""
    device = comfy.model_management.intermediate_device()
    return values.to(device=device, dtype=torch.float32).unsqueeze(-1).expand(*values.shape, 3).contiguous()


NODES: list[type[io.ComfyNode]] = [FE2ELogDepthDecode]
