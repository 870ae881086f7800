"""Stabilize Video Depth: one depth scale for all frames of a shot."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..fe2e_core.assumptions import mark
from ..fe2e_core.depth_decoding import DEFAULT_RATIO
from ..fe2e_core.geometry import depth_from_log, fov_from_focal
from ..fe2e_core.temporal import DepthStabilizer, FrameScale, TemporalOptions, stabilize_clip
from .node import Node
from .saving import find_saved, save_next
from .types import FE2EGeometryType, require_geometry

_LARGEST_STATE = 2**28  # bytes; a frame takes about a hundred, two reference frames below a megabyte
SOLVE, CONTINUE, REUSE = "solve", "continue a saved clip", "reuse saved scales"


class FE2EStabilizeVideo(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2EStabilizeVideo",
            display_name="Stabilize Video Depth",
            category="FE2E",
            description=(
                "The network stretches every frame's depth to its own nearest and farthest pixels, so a clip flickers. "
                "This solves each frame's scale against the shot's key frames, camera motion included, and finds cuts."
            ),
            search_aliases=["video depth", "flicker", "temporal", "consistent depth", "animation", "fe2e"],
            inputs=[
                FE2EGeometryType.Input(
                    "geometry", tooltip="The clip: one picture of the batch per frame, in order."
                ),
                io.Combo.Input(
                    "mode",
                    options=[SOLVE, CONTINUE, REUSE],
                    default=SOLVE,
                    tooltip="Solve this clip; continue a saved one, so that the next shot matches; or apply the saved "
                    "scales to the same frames again.",
                ),
                io.Boolean.Input(
                    "two_pass",
                    default=True,
                    tooltip="On: frames are also solved against the key frame after them. Off: only against what came "
                    "before, as when streaming.",
                ),
                io.Float.Input(
                    "far_near_ratio",
                    default=DEFAULT_RATIO,
                    min=1.01,
                    max=10000.0,
                    step=0.1,
                    tooltip="Far / near of a shot's first frame, if the geometry was not calibrated.",
                ),
                io.Float.Input(
                    "cut_threshold",
                    default=0.35,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="A new shot begins where less than this share of the picture (of the depth, without pictures) "
                    "is met again. 0 finds no cuts.",
                ),
                io.Boolean.Input(
                    "use_picture",
                    default=True,
                    advanced=True,
                    tooltip="Follow places in the pictures too: they say how the camera moves, what moves by itself, and "
                    "where a cut is.",
                ),
                io.String.Input(
                    "state",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="For 'continue' and 'reuse': the JSON of an earlier run, or the name of its file in the output "
                    "folder.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Name, or subfolder and name, under which the state is saved as a JSON file in the output "
                    "folder, such as FE2E/shot. A number is added. Empty: not saved.",
                ),
            ],
            outputs=[
                FE2EGeometryType.Output(
                    display_name="geometry",
                    tooltip="With log_range, log_near and depth of one scale per shot.",
                ),
                io.String.Output(
                    display_name="state",
                    tooltip="JSON: the scale of every frame and the key frame to continue from.",
                ),
                io.String.Output(display_name="report", tooltip="Shots, key frames and how well frames fit."),
            ],
        )

    @classmethod
    def execute(
        cls,
        geometry,
        mode,
        two_pass=True,
        far_near_ratio=DEFAULT_RATIO,
        cut_threshold=0.35,
        use_picture=True,
        state="",
        filename_prefix="",
    ) -> io.NodeOutput:
        require_geometry(geometry)
        labels = geometry["log_depth"].float()
        first_range = float(torch.log(torch.tensor(far_near_ratio)))
        if mode == SOLVE:
            options = TemporalOptions(first_log_range=first_range, cut_inliers=cut_threshold)
            solver = DepthStabilizer(options, _field_of_view(geometry))
        else:
            if not state.strip():
                raise ValueError(
                    f"state: '{mode}' needs the JSON that an earlier run put out; connect it or choose '{SOLVE}'."
                )
            solver = DepthStabilizer.from_json(_state_text(state.strip()))
        if mode == REUSE:
            scales = solver.frames
            if len(scales) != len(labels):
                raise ValueError(
                    f"state: it holds {len(scales)} frames, but the clip has {len(labels)}; reuse is for the same frames."
                )
        else:
            ranges = geometry.get("log_range")
            ranges = None if ranges is None else ranges.reshape(-1).expand(len(labels)).tolist()
            progress = comfy.utils.ProgressBar(len(labels))

            def on_frame(done: int) -> None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                progress.update_absolute(done, len(labels))

            images = geometry["image"] if use_picture else None
            before = len(solver.frames)
            scales = stabilize_clip(labels, geometry["mask"], images, solver, ranges, two_pass, on_frame)
            solver.frames[before:] = scales
        device = comfy.model_management.intermediate_device()
        log_range = torch.tensor([s.log_range for s in scales], dtype=torch.float32, device=device)
        log_near = torch.tensor([s.log_near for s in scales], dtype=torch.float32, device=device)
        result = {
            **geometry,
            "log_range": log_range,
            "log_near": log_near,
            "depth": depth_from_log(labels.to(device), log_range, log_near),
            "metric": False,
        }
        result.pop("confidence", None)
        if geometry.get("log_range") is None:
            mark(result, assumed=["log_range"])  # the ratio given here stood in
        report, text = _report(scales), solver.to_json()
        if geometry.get("metric"):
            report += "\nmetres are not kept: put 'Anchor Depth' after this node, with one_fit for another depth"
        if mode == CONTINUE and scales and scales[0].cut:
            report += "\nthe first frame does not show what the saved clip ends with: a new shot begins there"
        if filename_prefix.strip():
            saved = save_next(filename_prefix, ".json", lambda path: Path(path).write_text(text, encoding="utf-8"))
            report += f"\nstate saved as {Path(saved['subfolder'], saved['filename']).as_posix()}"
        return io.NodeOutput(result, text, report, ui={"text": (report,)})


def _state_text(state: str) -> str:
    """The JSON itself, or what a file of ComfyUI's folders holds; ValueError or FileNotFoundError for neither."""
    if state.startswith("{"):
        return state
    path = find_saved(state, "state")
    if path.stat().st_size > _LARGEST_STATE:
        raise ValueError(f"state: '{path}' has {path.stat().st_size:,} bytes, expected the JSON file of an earlier run")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"state: '{path}' is no text, expected the JSON file of an earlier run") from None


def _field_of_view(geometry: dict) -> float:
    """Horizontal degrees: the clip's median if calibrated, else 60; the solution hardly depends on it."""
    intrinsics = geometry.get("intrinsics")
    return 60.0 if intrinsics is None else float(fov_from_focal(float(intrinsics[:, 0, 0].median())))


def _report(scales: list[FrameScale]) -> str:
    cuts = [t for t, s in enumerate(scales) if s.cut]
    shots = len({0, *cuts})
    keys = [t for t, s in enumerate(scales) if s.key]
    residuals = torch.tensor([s.residual for s in scales])
    inliers = torch.tensor([s.inliers for s in scales])
    return (
        f"{len(scales)} frames, {shots} shot{'s' * (shots > 1)} (cuts before frames {cuts or 'none'}), key frames {keys}\n"
        f"points met again: median {100 * float(inliers.median()):.0f} %, least {100 * float(inliers.min()):.0f} %; "
        f"they agree within {100 * float(residuals.median()):.1f} % (median)"
    )


NODES: list[type[io.ComfyNode]] = [FE2EStabilizeVideo]
