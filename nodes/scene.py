"""The camera and the true shape: Calibrate Camera, Confidence, Refine Depth."""

from __future__ import annotations

import math

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fe2e_core.calibration import Calibration, CalibrationOptions, calibrate
from ..fe2e_core.confidence import agreement
from ..fe2e_core.geometry import (
    depth_from_log,
    fov_from_equivalent_focal,
    fov_from_vertical,
    intrinsics_from_fov,
)
from ..fe2e_core.refinement import RefinementOptions, refine_depth
from .assumed import Camera
from .masks import counted_pixels
from .types import FE2EGeometryType, require_geometry

ESTIMATE, DEGREES, MILLIMETRES, CONNECTED = (
    "estimate",
    "field of view",
    "35 mm focal length",
    "connected camera",
)


class FE2ECalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ECalibrate",
            display_name="Calibrate Camera",
            category="FE2E",
            description=(
                "Finds the field of view and the depth range from depth and normals, which check each other. The "
                "scene then has its true shape, up to one scale. Says so where a scene cannot tell, such as one flat "
                "wall."
            ),
            search_aliases=[
                "field of view",
                "fov",
                "camera",
                "intrinsics",
                "focal length",
                "lens",
                "depth range",
                "fe2e",
            ],
            inputs=[
                FE2EGeometryType.Input("geometry", tooltip="From Estimate Depth+Normal."),
                io.DynamicCombo.Input(
                    "camera",
                    tooltip="Where the field of view comes from. A known one makes the depth range more certain.",
                    options=[
                        io.DynamicCombo.Option(ESTIMATE, []),
                        io.DynamicCombo.Option(
                            DEGREES,
                            [
                                io.Float.Input(
                                    "fov",
                                    default=60.0,
                                    min=1.0,
                                    max=170.0,
                                    step=0.1,
                                    tooltip="Horizontal field of view in degrees.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            MILLIMETRES,
                            [
                                io.Float.Input(
                                    "focal_length",
                                    default=28.0,
                                    min=4.0,
                                    max=2000.0,
                                    step=0.1,
                                    tooltip="35 mm-equivalent focal length in millimetres, as phones write it into "
                                    "their files (26 or 28 for a phone's main lens).",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(CONNECTED, []),
                    ],
                ),
                io.Boolean.Input(
                    "one_camera",
                    default=False,
                    tooltip="On: all pictures of the batch were taken with one lens setting, as in a clip; they are "
                    "solved together. Off: each picture has its own camera.",
                ),
                io.Float.Input(
                    "center_x",
                    default=0.5,
                    min=-2.0,
                    max=3.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Where the optical axis meets the picture, in fractions of its width. 0.5 unless the "
                    "picture was cropped off centre.",
                ),
                io.Float.Input(
                    "center_y",
                    default=0.5,
                    min=-2.0,
                    max=3.0,
                    step=0.001,
                    advanced=True,
                    tooltip="The same from the top, in fractions of its height.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where pixels may be used; people or sky can be left out.",
                ),
                Camera.Input(
                    "camera_info",
                    optional=True,
                    tooltip="For 'connected camera': its field of view is taken.",
                ),
            ],
            outputs=[
                FE2EGeometryType.Output(
                    display_name="geometry",
                    tooltip="With log_range, log_near, depth and intrinsics added where the scene told them.",
                ),
                io.Float.Output(
                    display_name="fov",
                    tooltip="Horizontal field of view of the first picture in degrees; 0 if unknown.",
                ),
                io.Float.Output(
                    display_name="far_near_ratio",
                    tooltip="Far plane / near plane of the first picture; 0 if unknown.",
                ),
                io.Boolean.Output(
                    display_name="determined", tooltip="True if every picture told its camera and range."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Estimates with their standard errors, one line per picture.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, geometry, camera, one_camera=False, center_x=0.5, center_y=0.5, mask=None, camera_info=None
    ) -> io.NodeOutput:
        require_geometry(geometry)
        height, width = geometry["log_depth"].shape[1:]
        options = CalibrationOptions(
            fov_x_degrees=_known_fov(camera, camera_info, height, width),
            principal_point=(center_x, center_y),
            one_camera=one_camera,
        )
        counted = counted_pixels(geometry["mask"], mask)
        found = calibrate(
            geometry["log_depth"],
            geometry["normal"],
            counted,
            options,
            on_frame=comfy.model_management.throw_exception_if_processing_interrupted,
        )
        result = dict(geometry)
        everything = bool(found.determined.all())
        fov = _filled(found.fov_x_degrees, found.determined | torch.isfinite(found.fov_x_degrees))
        span = _filled(found.log_range, found.determined)
        device = comfy.model_management.intermediate_device()
        if fov is not None:
            k = intrinsics_from_fov(fov, height, width, center_x, center_y)
            result["intrinsics"] = k.to(device=device, dtype=torch.float32)
        if span is not None:
            result["log_range"] = span.to(device=device, dtype=torch.float32)
            result["log_near"] = torch.zeros_like(result["log_range"])
            label = geometry["log_depth"].to(device)
            result["depth"] = depth_from_log(label, result["log_range"], result["log_near"])
            result["metric"] = False
            result.pop("confidence", None)  # it judged another depth
        report = _report(found)
        return io.NodeOutput(
            result,
            float(fov[0]) if fov is not None else 0.0,
            float(torch.exp(span[0])) if span is not None else 0.0,
            everything,
            report,
            ui={"text": (report,)},
        )


def _known_fov(camera: dict, info: dict | None, height: int, width: int) -> float | None:
    source = camera["camera"]
    if source == DEGREES:
        return float(camera["fov"])
    if source == MILLIMETRES:
        return fov_from_equivalent_focal(float(camera["focal_length"]), height, width)
    if source == CONNECTED:
        if not isinstance(info, dict) or not info.get("fov"):
            raise ValueError(
                "camera_info: 'connected camera' needs a camera with a field of view; connect one, or choose 'estimate'."
            )
        return fov_from_vertical(float(info["fov"]), height, width)
    return None


def _filled(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor | None:
    """Values with the unknown ones replaced by the median of the others of the batch; None if none is
    known.
    """
    if not bool(known.any()):
        return None
    return torch.where(known, values, values[known].median())


def _report(found: Calibration) -> str:
    lines = []
    for b in range(len(found.determined)):
        name = f"picture {b}: " if len(found.determined) > 1 else ""
        if found.determined[b]:
            span, error = float(found.log_range[b]), float(found.log_range_error[b])
            ratio = math.exp(span)
            lines.append(
                f"{name}field of view {float(found.fov_x_degrees[b]):.1f} ± {float(found.fov_error[b]):.1f} degrees, "
                f"far / near {ratio:.2f} ± {ratio * error:.2f}; depth and normals differ by "
                f"{float(found.residual_degrees[b]):.1f} degrees"
            )
        else:
            others = (
                "; the batch's other pictures stand in"
                if bool(found.determined.any())
                else "; nothing was added"
            )
            lines.append(f"{name}undetermined: {found.reason[b]}{others}")
    return "\n".join(lines)


def _shape(geometry: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and intrinsics of a geometry whose shape is known; ValueError naming Calibrate Camera if not."""
    require_geometry(geometry, "depth", "intrinsics")
    return geometry["depth"].float(), geometry["intrinsics"].to(geometry["depth"].device).float()


class FE2EConfidence(io.ComfyNode):
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


class FE2ERefine(io.ComfyNode):
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


NODES: list[type[io.ComfyNode]] = [FE2ECalibrate, FE2EConfidence, FE2ERefine]
