"""Calibrate Camera: field of view and depth range from depth and normals."""

from __future__ import annotations

import math

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fe2e_core.assumptions import mark
from ..fe2e_core.calibration import Calibration, CalibrationOptions, calibrate
from ..fe2e_core.geometry import (
    depth_from_log,
    fov_from_equivalent_focal,
    fov_from_vertical,
    intrinsics_from_fov,
)
from .assumed import Camera
from .masks import counted_pixels
from .node import Node
from .types import FE2EGeometryType, require_geometry

ESTIMATE, OFF_CENTRE, DEGREES, MILLIMETRES, CONNECTED = (
    "estimate",
    "estimate, off centre",
    "field of view",
    "35 mm focal length",
    "connected camera",
)


class FE2ECalibrate(Node):
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
                    tooltip="Where the field of view comes from. 'Off centre' also finds where the optical axis meets "
                    "a picture that was cropped. A known field of view makes the depth range more certain.",
                    options=[
                        io.DynamicCombo.Option(ESTIMATE, []),
                        io.DynamicCombo.Option(OFF_CENTRE, []),
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
                    "picture was cropped off centre. 'Estimate, off centre' begins here.",
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
            find_center=camera["camera"] == OFF_CENTRE,
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
            k = intrinsics_from_fov(fov, height, width)
            center = _filled(found.center, found.determined | torch.isfinite(found.center).all(-1))
            k[:, :2, 2] = center.to(k)
            result["intrinsics"] = k.to(device=device, dtype=torch.float32)
            mark(result, found=["intrinsics"])
        if span is not None:
            result["log_range"] = span.to(device=device, dtype=torch.float32)
            result["log_near"] = torch.zeros_like(result["log_range"])
            label = geometry["log_depth"].to(device)
            result["depth"] = depth_from_log(label, result["log_range"], result["log_near"])
            result["metric"] = False
            result.pop("confidence", None)  # it judged another depth
            mark(result, found=["log_range"])
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
        found = info.get("fov") if isinstance(info, dict) else None
        if not isinstance(found, (int, float)) or not 0 < found < 180:
            raise ValueError(
                f"camera_info: 'connected camera' needs a camera with a field of view, found {found}; connect one, or choose 'estimate'."
            )
        return fov_from_vertical(float(info["fov"]), height, width)
    return None


def _filled(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor | None:
    """Values (B, ...) with the unknown ones (B,) replaced by the median of the others of the batch; None if
    none is known.
    """
    if not bool(known.any()):
        return None
    shown = known.reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(shown, values, values[known].median(0).values)


def _report(found: Calibration) -> str:
    lines = []
    for b in range(len(found.determined)):
        name = f"picture {b}: " if len(found.determined) > 1 else ""
        if found.determined[b]:
            span, error = float(found.log_range[b]), float(found.log_range_error[b])
            ratio = math.exp(span)
            lines.append(
                f"{name}field of view {float(found.fov_x_degrees[b]):.1f} ± {float(found.fov_error[b]):.1f} degrees, "
                f"{_center(found, b)}far / near {ratio:.2f} ± {ratio * error:.2f}; depth and normals differ by "
                f"{float(found.residual_degrees[b]):.1f} degrees"
            )
        else:
            if bool(found.determined.any()):
                others = "the batch's other pictures stand in"
            elif bool(torch.isfinite(found.fov_x_degrees[b])):
                others = "the camera that was given was added, but no depth range"
            else:
                others = "nothing was added"
            lines.append(f"{name}undetermined: {found.reason[b]}; {others}")
    if not bool(found.determined.any()) and not bool((found.fov_error == 0).any()):
        lines.append("If you know the field of view or the focal length, give it: then only the range is to be found.")
    return "\n".join(lines)


def _center(found: Calibration, b: int) -> str:
    """Where the optical axis is, if that was estimated."""
    error = found.center_error[b].tolist()
    if not any(error):
        return ""
    x, y = found.center[b].tolist()
    return f"optical axis at {x:.2f} ± {error[0]:.2f}, {y:.2f} ± {error[1]:.2f}, "


NODES: list[type[io.ComfyNode]] = [FE2ECalibrate]
