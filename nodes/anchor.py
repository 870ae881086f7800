"""Anchor Depth: metres from what is known about the scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..fe2e_core.anchoring import AnchorFit, fit_anchor, sample_at, scale_from_distance, scale_from_length
from ..fe2e_core.assumptions import is_assumed, mark
from .bridges import Da3Geometry, MogeGeometry
from .node import Node
from .reference_depth import reference_depth
from .types import FE2EGeometryType, require_geometry

NEAR_FAR, TWO_POINTS, LENGTH, DISTANCE = (
    "near and far",
    "two points",
    "length between two points",
    "one distance",
)
SPARSE, REFERENCE = "sparse points", "another depth"
AUTO, KEEP, FIT = "keep if calibrated", "keep", "fit"
_WIDE = 0.05  # relative error of points that the range is to be doubted for


def _fraction(name: str, default: float, what: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=what)


def _metres(name: str, default: float, what: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.001, max=100000.0, step=0.01, tooltip=what)


_POINT_A = [
    _fraction("x1", 0.3, "First point, from the left edge, in fractions of the width."),
    _fraction("y1", 0.7, "First point, from the top, in fractions of the height."),
]
_POINT_B = [
    _fraction("x2", 0.7, "Second point, from the left edge, in fractions of the width."),
    _fraction("y2", 0.4, "Second point, from the top, in fractions of the height."),
]


@dataclass(frozen=True)
class _Line:
    """ln metres = gain * x + offset, with what the fit says about itself. miss: relative error that six in ten points stay
    below."""

    gain: float
    offset: float
    report: str
    miss: float = 0.0


class FE2EAnchorDepth(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EAnchorDepth",
            display_name="Anchor Depth",
            category="FE2E",
            description=(
                "Gives the depth metres: from near and far, two picked points, one known length or distance, measured "
                "points, or another depth. Robust: a third of the points may be wrong."
            ),
            search_aliases=["metric depth", "metres", "meters", "scale", "align depth", "measure", "fe2e"],
            inputs=[
                FE2EGeometryType.Input(
                    "geometry", tooltip="From Estimate Depth+Normal; calibrated geometry needs less."
                ),
                io.DynamicCombo.Input(
                    "anchor",
                    tooltip="What is known about the scene.",
                    options=[
                        io.DynamicCombo.Option(
                            NEAR_FAR,
                            [
                                _metres(
                                    "near", 1.0, "Metres to the near plane: 2 % of the pixels are nearer."
                                ),
                                _metres(
                                    "far", 10.0, "Metres to the far plane: 98 % of the pixels are nearer."
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            TWO_POINTS,
                            [
                                *_POINT_A,
                                _metres("depth1", 2.0, "Metres to the first point, along the viewing axis."),
                                *_POINT_B,
                                _metres("depth2", 5.0, "Metres to the second point, along the viewing axis."),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            LENGTH,
                            [
                                *_POINT_A,
                                *_POINT_B,
                                _metres(
                                    "length",
                                    1.0,
                                    "Metres between the two points, such as the height of a door (2.0).",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            DISTANCE,
                            [
                                *_POINT_A,
                                _metres(
                                    "distance",
                                    3.0,
                                    "Metres from the lens to the point, as a laser measures it.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            SPARSE,
                            [
                                io.String.Input(
                                    "points",
                                    default="0.3 0.7 2.0\n0.7 0.4 5.0",
                                    multiline=True,
                                    tooltip="One point per line: x and y in fractions of the picture, then metres along the "
                                    "viewing axis.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(REFERENCE, []),
                    ],
                ),
                io.Combo.Input(
                    "range",
                    options=[AUTO, KEEP, FIT],
                    default=AUTO,
                    advanced=True,
                    tooltip="Keep: the calibrated shape stays and only its size is fitted. Fit: depth range and size. A range "
                    "that was only assumed is fitted unless you choose to keep it.",
                ),
                io.Int.Input(
                    "batch_index",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="The picture that points refer to; the whole batch is scaled alike.",
                ),
                io.Boolean.Input(
                    "one_fit",
                    default=False,
                    advanced=True,
                    tooltip="For another depth. On: one scale for the whole batch, as in a stabilised clip. Off: one per "
                    "picture.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="For 'another depth': raw metres, larger is farther, zero where unknown; any size.",
                ),
                MogeGeometry.Input(
                    "moge_geometry",
                    optional=True,
                    tooltip="For 'another depth': from the core MoGe nodes, with a model that gives metres (MoGe-2); not a "
                    "panorama.",
                ),
                Da3Geometry.Input(
                    "da3_geometry",
                    optional=True,
                    tooltip="For 'another depth': from Depth Anything 3, with a model that gives metres (DA3-Metric). Small, Base "
                    "and Mono know no unit.",
                ),
            ],
            outputs=[
                FE2EGeometryType.Output(
                    display_name="geometry", tooltip="With depth, log_range and log_near in metres."
                ),
                io.Image.Output(display_name="depth", tooltip="Metres, raw, in three equal channels."),
                io.String.Output(display_name="report", tooltip="What was fitted and how well it fits."),
            ],
        )

    @classmethod
    def execute(
        cls,
        geometry,
        anchor,
        range=AUTO,
        batch_index=0,
        one_fit=False,
        reference=None,
        moge_geometry=None,
        da3_geometry=None,
    ) -> io.NodeOutput:
        require_geometry(geometry)
        batch = len(geometry["log_depth"])
        if not 0 <= batch_index < batch:
            raise ValueError(
                f"batch_index: found {batch_index}, but the batch has {batch} pictures, counted from 0."
            )
        known = geometry.get("depth") is not None and geometry.get("log_range") is not None
        if range == KEEP and not known:
            raise ValueError(
                "range: there is no calibrated range to keep; choose 'fit', or add 'Calibrate Camera' first."
            )
        if range == KEEP and anchor["anchor"] == NEAR_FAR:
            raise ValueError(
                "range: near and far say what the range is, so there is none to keep; choose another anchor, or 'fit'."
            )
        if anchor["anchor"] == SPARSE:
            anchor = {**anchor, "points": _parse(anchor["points"])}
        # a default that stands in is not worth keeping, unless there is too little to fit a range to
        alone = anchor["anchor"] == SPARSE and len(anchor["points"][0]) == 1
        keep = range == KEEP or (range == AUTO and known and (alone or not is_assumed(geometry, "log_range")))
        x = (
            torch.log(geometry["depth"].float().clamp_min(1e-12))
            if known
            else (geometry["log_depth"].float() + 1) / 2
        )
        lines = cls._lines(
            geometry, anchor, x, known, keep, batch_index, one_fit, (reference, moge_geometry, da3_geometry)
        )
        device = comfy.model_management.intermediate_device()
        gain = torch.tensor([line.gain for line in lines], device=device)
        offset = torch.tensor([line.offset for line in lines], device=device)
        depth = torch.exp(gain[:, None, None] * x.to(device) + offset[:, None, None])
        if known:
            near = geometry.get("log_near")
            near = torch.zeros_like(gain) if near is None else near.to(gain)
            log_range, log_near = gain * geometry["log_range"].to(gain), gain * near + offset
        else:
            log_range, log_near = gain, offset
        result = {**geometry, "depth": depth, "log_range": log_range, "log_near": log_near, "metric": True}
        if not keep and anchor["anchor"] not in (LENGTH, DISTANCE):
            mark(result, found=["log_range"])
        counted = depth[geometry["mask"].to(device)]
        reach = (
            f"depth from {float(counted.min()):.2f} m to {float(counted.max()):.2f} m"
            if counted.numel()
            else "no pixel counts"
        )
        texts = dict.fromkeys(line.report for line in lines)
        report = "\n".join([*texts, reach, *_warnings(geometry, anchor["anchor"], lines, keep)])
        picture = depth.unsqueeze(-1).expand(*depth.shape, 3).contiguous()
        return io.NodeOutput(result, picture, report, ui={"text": (report,)})

    @classmethod
    def _lines(cls, geometry, anchor, x, known, keep, index, one_fit, references) -> list[_Line]:
        batch = len(x)
        kind = anchor["anchor"]
        if kind == NEAR_FAR:
            near, far = float(anchor["near"]), float(anchor["far"])
            if not 0 < near < far:
                raise ValueError(f"near, far: found {near} and {far}, expected 0 < near < far, in metres.")
            return [cls._near_far(geometry, b, known, near, far) for b in range(batch)]
        if kind == REFERENCE:
            return cls._against(geometry, x, keep, one_fit, references)
        mask, values = geometry["mask"][index].cpu(), x[index].cpu()
        if kind in (LENGTH, DISTANCE):
            require_geometry(geometry, "depth", "intrinsics")
            depth, k = geometry["depth"][index].float().cpu(), geometry["intrinsics"][index].cpu()
            first = torch.tensor([anchor["x1"], anchor["y1"]])
            if kind == LENGTH:
                ends = torch.stack([first, torch.tensor([anchor["x2"], anchor["y2"]])])
                scale = scale_from_length(depth, k, ends, float(anchor["length"]), mask)
            else:
                scale = scale_from_distance(depth, k, first, float(anchor["distance"]), mask)
            return [_Line(1.0, math.log(scale), f"one unit of the depth is {scale:.4g} m")] * batch
        if kind == TWO_POINTS:
            points = torch.tensor([[anchor["x1"], anchor["y1"]], [anchor["x2"], anchor["y2"]]])
            metres = torch.tensor([anchor["depth1"], anchor["depth2"]])
        else:
            points, metres = anchor["points"]
        fit = fit_anchor(sample_at(values, points, mask), metres, gain=1.0 if keep else None)
        return [_of_fit(fit)] * batch

    @staticmethod
    def _near_far(geometry, b, known, near, far) -> _Line:
        """The label's two ends go to near and far; a refined depth keeps its refinement."""
        gain, offset = math.log(far / near), math.log(near)
        if known:
            old = float(geometry["log_range"][b])
            start = float(geometry["log_near"][b]) if geometry.get("log_near") is not None else 0.0
            gain, offset = gain / old, offset - gain / old * start
        return _Line(gain, offset, f"near plane {near:g} m, far plane {far:g} m")

    @staticmethod
    def _against(geometry, x, keep, one_fit, references) -> list[_Line]:
        metres, valid = reference_depth(references, x.shape)
        # labels at the very ends are cut off: their depth is not theirs
        usable = geometry["mask"].cpu() & valid & (geometry["log_depth"].cpu().abs() != 1)
        gain = 1.0 if keep else None
        values = x.cpu()
        if one_fit:
            fit = fit_anchor(values[usable], metres[usable], gain)
            return [_of_fit(fit)] * len(x)
        lines = []
        for b in range(len(x)):
            fit = fit_anchor(values[b][usable[b]], metres[b][usable[b]], gain)
            lines.append(_of_fit(fit, f"picture {b}: "))
        return lines


def _warnings(geometry: dict, kind: str, lines: list[_Line], keep: bool) -> list[str]:
    """What the user should know of the result, one line each."""
    found = []
    miss = max(line.miss for line in lines)
    if keep and miss > _WIDE:
        found.append(
            f"the range that was kept does not fit: four in ten of the points are off by {100 * miss:.0f} % or more; "
            "choose 'fit' as range, or calibrate again"
        )
    by_camera = kind in (LENGTH, DISTANCE)
    for key, name, used in (("log_range", "depth range", by_camera or keep), ("intrinsics", "camera", by_camera)):
        if used and is_assumed(geometry, key):
            found.append(f"the {name} is only assumed, and with it these metres; add 'Calibrate Camera' before")
    if kind == REFERENCE:
        found.append("the reference is taken to be in metres")
    return found


def _of_fit(fit: AnchorFit, name: str = "") -> _Line:
    misses = fit.residuals[torch.isfinite(fit.residuals)].abs().sort().values
    # a third of the points may be wrong without a word
    miss = float(misses[math.ceil(0.6 * (len(misses) - 1))])
    return _Line(fit.gain, fit.offset, name + _quality(fit), math.expm1(min(miss, 10.0)))


def _quality(fit: AnchorFit) -> str:
    return (
        f"{fit.used} points agree within {100 * fit.residual:.2f} % (median), of {fit.given} given; "
        f"gain {fit.gain:.3f}, offset {fit.offset:.3f} in ln metres"
    )


def _parse(text: str) -> tuple[Tensor, Tensor]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            row = []
        if len(row) != 3 or not all(map(math.isfinite, row)):
            raise ValueError(
                f"points: line {number} is {line.strip()!r}, expected 'x y metres', such as '0.5 0.5 2.0'."
            )
        rows.append(row)
    if not rows:
        raise ValueError("points: found none, expected lines 'x y metres'.")
    table = torch.tensor(rows)
    return table[:, :2], table[:, 2]


NODES: list[type[io.ComfyNode]] = [FE2EAnchorDepth]
