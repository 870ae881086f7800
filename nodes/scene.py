"""The true shape: Confidence, Refine Depth."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fe2e_core.confidence import agreement
from ..fe2e_core.refinement import RefinementOptions, refine_depth
from .node import Node
from .types import FE2EGeometryType, require_geometry


def _shape(geometry: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and intrinsics of a geometry whose shape is known; ValueError naming Calibrate Camera if not."""
    require_geometry(geometry, "depth", "intrinsics")
    return geometry["depth"].float(), geometry["intrinsics"].to(geometry["depth"].device).float()


class FE2EConfidence(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EConfidence",
            display_name="Confidence",
            category="FE2E",
            description=(
                "How far each pixel can be trusted: where the normals of the calibrated depth agree with the predicted "
                "normals. Low at blurred edges, invented relief, tilted or misplaced pieces."
            ),
            search_aliases=["uncertainty", "confidence", "error", "quality", "trust", "fe2e"],
            inputs=[
                FE2EGeometryType.Input("geometry", tooltip="From Calibrate Camera or any node after it."),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pixels below it no longer count in the geometry. 0 keeps all; 0.5 is 15 degrees of "
                    "disagreement.",
                ),
                io.Boolean.Input(
                    "use_picture",
                    default=True,
                    advanced=True,
                    tooltip="Let edges in the picture explain jumps in depth, so that objects before a parallel wall "
                    "are not suspected.",
                ),
            ],
            outputs=[
                FE2EGeometryType.Output(
                    display_name="geometry",
                    tooltip="With confidence, and the mask cleared below the threshold.",
                ),
                io.Mask.Output(display_name="confidence", tooltip="0 to 1; 1 where depth and normals agree."),
                io.Image.Output(display_name="picture", tooltip="The same as a grey picture."),
            ],
        )

    @classmethod
    def execute(cls, geometry, threshold=0.0, use_picture=True) -> io.NodeOutput:
        depth, intrinsics = _shape(geometry)
        normal, mask = geometry["normal"].to(depth.device), geometry["mask"].to(depth.device)
        scores = []
        for b in range(len(depth)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            image = geometry["image"][b : b + 1].to(depth.device) if use_picture else None
            one = slice(b, b + 1)
            scores.append(agreement(depth[one], normal[one], mask[one], intrinsics[one], image))
        score = torch.cat(scores).to(device=comfy.model_management.intermediate_device(), dtype=torch.float32)
        result = {**geometry, "confidence": score}
        if threshold > 0:
            result["mask"] = geometry["mask"] & (score >= threshold).to(geometry["mask"].device)
        return io.NodeOutput(result, score, score.unsqueeze(-1).expand(*score.shape, 3).contiguous())


class FE2ERefine(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ERefine",
            display_name="Refine Depth",
            category="FE2E",
            description=(
                "Makes the calibrated depth consistent with the predicted normals: flat walls become flat, noise at "
                "edges goes, edges stay. For meshes, relighting and point clouds."
            ),
            search_aliases=[
                "smooth depth",
                "denoise depth",
                "bilateral",
                "flatten",
                "normal integration",
                "fe2e",
            ],
            inputs=[
                FE2EGeometryType.Input("geometry", tooltip="From Calibrate Camera or any node after it."),
                io.Float.Input(
                    "reach",
                    default=RefinementOptions().reach,
                    min=0.01,
                    max=2.0,
                    step=0.01,
                    tooltip="Within this fraction of the picture the normals decide, beyond it the given depth. Larger "
                    "changes more.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Blend between the given depth (0) and the refined one (1).",
                ),
                io.Boolean.Input(
                    "use_confidence",
                    default=True,
                    advanced=True,
                    tooltip="If the geometry has a confidence, doubtful pixels hold on to their depth less.",
                ),
            ],
            outputs=[
                FE2EGeometryType.Output(
                    display_name="geometry",
                    tooltip="With the refined depth; log_depth stays what the network said.",
                )
            ],
        )

    @classmethod
    def execute(cls, geometry, reach, strength=1.0, use_confidence=True) -> io.NodeOutput:
        depth, intrinsics = _shape(geometry)
        normal, mask = geometry["normal"].to(depth.device), geometry["mask"].to(depth.device)
        confidence = geometry.get("confidence") if use_confidence else None
        options = RefinementOptions(reach=reach)
        out = []
        for b in range(len(depth)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            one = slice(b, b + 1)
            trust = None if confidence is None else confidence[one].to(depth.device)
            out.append(refine_depth(depth[one], normal[one], mask[one], intrinsics[one], trust, options))
        refined = torch.cat(out)
        if strength < 1:
            mixed = torch.exp(
                torch.lerp(torch.log(depth.clamp_min(1e-12)), torch.log(refined.clamp_min(1e-12)), strength)
            )
            refined = torch.where(mask, mixed, refined)
        refined = refined.to(device=comfy.model_management.intermediate_device(), dtype=torch.float32)
        return io.NodeOutput({**geometry, "depth": refined})


NODES: list[type[io.ComfyNode]] = [FE2EConfidence, FE2ERefine]
