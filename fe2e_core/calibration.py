"""Field of view and depth range from log-depth and normals: the two predictions calibrate each other.

The slopes of Eq. 7's label and the normals fit together for one camera and one range only (camera_fit.py).
The slopes come from planar patches (patches.py), so that they are nearly free of error. What the scene does
not tell, or what depth and normals contradict each other about, is reported instead of guessed
(camera_error.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .camera_error import CameraError, camera_error
from .camera_fit import (
    FOCAL_LIMITS,
    HALF_LIMITS,
    CameraFit,
    CameraState,
    Unknowns,
    refine,
    residuals_of,
    rough_start,
)
from .geometry import focal_from_fov, intrinsics_from_fov
from .patches import PlanePatches, plane_patches, tile_size

_MOST_PATCHES = 20_000  # of a whole clip
_TOO_FEW = "too few smooth, unmasked pixels to measure"
# Hardly a lens draws straight lines beyond these (a 90 mm lens on small film, a 10 mm lens on 35 mm film); an
# estimate beyond them has to exclude them clearly.
_PLAUSIBLE = (20.0, 120.0)
_CLEARLY = 3.0  # standard errors


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    fov_x_degrees: a known horizontal field of view, then only the range is estimated. principal_point:
    fractions of the picture; with find_center it is where the search for it begins. one_camera: one field of
    view (and principal point) for all frames (each still has its own range, as Eq. 7 normalises each frame by
    itself). Results whose standard error exceeds max_fov_error (degrees), max_range_error (fraction of the
    log range) or max_center_error (fraction of the picture), or where depth and normals of the median patch
    disagree by more than max_disagreement (degrees), are reported as undetermined.
    """

    fov_x_degrees: float | None = None
    principal_point: tuple[float, float] = (0.5, 0.5)
    find_center: bool = False
    one_camera: bool = False
    max_fov_error: float = 12.0
    max_range_error: float = 0.3
    max_center_error: float = 0.12
    max_disagreement: float = 20.0


@dataclass(frozen=True)
class Calibration:
    """What the pictures say about their camera; one entry per frame.

    fov_x_degrees, log_range: (B,) float64, the horizontal field of view and ln(far / near) of Eq. 7's label.
    fov_error, log_range_error: (B,) standard errors, in degrees and in units of log_range; infinite where
    there is nothing to measure, zero for a given field of view. center, center_error: (B, 2) principal point
    in fractions of the picture, and its standard error; zero where it was given. residual_degrees: (B,)
    median angle that is left between predicted and geometric normals of patches. pixels: (B,) number of
    pixels behind the estimate. determined: (B,) bool; reason: why not, one text per frame, empty where
    determined. What is not determined is nan, never a guess.
    """

    fov_x_degrees: Tensor
    fov_error: Tensor
    log_range: Tensor
    log_range_error: Tensor
    center: Tensor
    center_error: Tensor
    residual_degrees: Tensor
    pixels: Tensor
    determined: Tensor
    reason: tuple[str, ...]

    def intrinsics(self, height: int, width: int) -> Tensor:
        """Normalised intrinsics (B, 3, 3) of square pixels for a picture of this size."""
        k = intrinsics_from_fov(self.fov_x_degrees, height, width)
        k[:, :2, 2] = self.center.to(k)
        return k


def calibrate(
    log_depth: Tensor,
    normal: Tensor,
    mask: Tensor | None = None,
    options: CalibrationOptions | None = None,
    on_frame: Callable[[], None] | None = None,
) -> Calibration:
    """Estimate field of view and log range.

    Args: log_depth (B, H, W), the label of Eq. 7, larger is farther; normal (B, H, W, 3), unit OpenCV; mask
    (B, H, W) bool, true where a pixel counts. Raises ValueError for shapes that do not fit or pictures
    under 32 x 32 pixels. on_frame is called before each look at a frame (three per frame).
    """
    options = options or CalibrationOptions()
    log_depth, normal, mask = _checked(log_depth, normal, mask)
    if options.one_camera:
        groups = [list(range(log_depth.shape[0]))]
    else:
        groups = [[b] for b in range(log_depth.shape[0])]
    parts = [_calibrate_group(log_depth[g], normal[g], mask[g], options, on_frame) for g in groups]
    return _joined(parts, [place for group in groups for place in group])


def _checked(log_depth: Tensor, normal: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if log_depth.ndim != 3 or normal.shape != (*log_depth.shape, 3):
        raise ValueError(
            f"log_depth, normal: found shapes {tuple(log_depth.shape)} and {tuple(normal.shape)}, "
            "expected (B, H, W) and (B, H, W, 3)."
        )
    if min(log_depth.shape[1:]) < 32:
        raise ValueError(f"geometry: found {log_depth.shape[2]} x {log_depth.shape[1]} pixels, expected at least 32 x 32; use a larger picture.")
    if mask is None:
        mask = torch.ones_like(log_depth, dtype=torch.bool)
    if mask.shape != log_depth.shape:
        raise ValueError(f"mask: found shape {tuple(mask.shape)}, expected {tuple(log_depth.shape)}.")
    # A network's label is cut off at -1 and 1; what lies beyond is flat in the label and sloped in the world.
    usable = torch.isfinite(log_depth) & (log_depth.abs() != 1) & torch.isfinite(normal).all(-1)
    return log_depth.detach(), normal.detach(), mask & usable


def _joined(parts: list[Calibration], places: list[int]) -> Calibration:
    """Calibrations of some frames each, put back in the frames' order."""
    order = torch.tensor(places).argsort()

    def column(name: str) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts])[order]

    reasons = [text for p in parts for text in p.reason]
    return Calibration(
        **{f.name: column(f.name) for f in fields(Calibration) if f.name != "reason"},
        reason=tuple(reasons[i] for i in order.tolist()),
    )


def _calibrate_group(
    log_depth: Tensor,
    normal: Tensor,
    mask: Tensor,
    options: CalibrationOptions,
    on_frame: Callable[[], None] | None,
) -> Calibration:
    """All frames of one camera."""
    frames, height, width = log_depth.shape
    aspect = height / width
    tile = tile_size(height, width)
    given = None if options.fov_x_degrees is None else float(focal_from_fov(options.fov_x_degrees))
    unknowns = Unknowns(focal=given is None, centre=options.find_center)
    centre = torch.tensor(options.principal_point, dtype=torch.float64) * torch.tensor([1.0, aspect])
    half = torch.full((frames,), 0.8, dtype=torch.float64)
    limit = max(60, _MOST_PATCHES // frames)
    fit = None
    for _ in range(3):
        # Slopes are refined with the range found so far, since only the right one makes planes exactly
        # affine.
        parts = []
        for b in range(frames):
            if on_frame is not None:
                on_frame()
            part = plane_patches(log_depth[b], normal[b], mask[b], float(half[b]), tile, b)
            if len(part) > limit:
                part = part.take(torch.linspace(0, len(part) - 1, limit).long())
            parts.append(part)
        patches = PlanePatches.cat(parts)
        enough = torch.bincount(patches.frame, minlength=frames) >= 8
        if not bool(enough.all()):
            index = torch.nonzero(enough)[:, 0].tolist()
            rest = torch.nonzero(~enough)[:, 0].tolist()
            seen = []
            if index:
                seen = [_calibrate_group(log_depth[index], normal[index], mask[index], options, on_frame)]
            return _joined([*seen, _unseen(len(rest), seen, options)], index + rest)
        state = rough_start(patches, centre, frames, given) if fit is None else fit.state
        # the camera's field of view first, then its axis: from far off, the two trade places
        if fit is None and unknowns.centre:
            state = refine(patches, state, Unknowns(unknowns.focal, False)).state
        fit = refine(patches, state, unknowns)
        half = fit.state.half.clamp(0.02, 6.0)
    return _report(patches, fit, camera_error(patches, fit, unknowns, aspect), unknowns, options, aspect)


def _report(
    patches: PlanePatches,
    fit: CameraFit,
    error: CameraError,
    unknowns: Unknowns,
    options: CalibrationOptions,
    aspect: float,
) -> Calibration:
    state = fit.state
    frames = state.half.shape[0]
    angle = torch.rad2deg(residuals_of(patches, state, unknowns).angle.square().sum(-1).sqrt())
    per_frame = [patches.frame == b for b in range(frames)]
    median = torch.stack([angle[f].median() for f in per_frame])
    fov, low, high = (_fov(state.focal * math.exp(n * min(error.focal, 20.0))) for n in (0, 1, -1))
    center = state.centre / torch.tensor([1.0, aspect], dtype=torch.float64)
    center_error = error.centre / torch.tensor([1.0, aspect], dtype=torch.float64)
    doubts = _Doubts(options, unknowns, state, error, fov, (high - low) / 2, float(center_error.max()))
    reasons = tuple(doubts.of_frame(b, float(median[b])) for b in range(frames))
    determined = torch.tensor([not r for r in reasons])
    unknown = torch.full((frames,), math.nan, dtype=torch.float64)
    fovs = torch.full_like(unknown, fov)
    log_range = 2 * state.half
    centers = center.expand(frames, 2)
    return Calibration(
        fov_x_degrees=torch.where(determined, fovs, unknown) if unknowns.focal else fovs,
        fov_error=torch.full_like(unknown, (high - low) / 2),
        log_range=torch.where(determined, log_range, unknown),
        log_range_error=log_range * error.range,
        center=torch.where(determined[:, None], centers, math.nan) if unknowns.centre else centers,
        center_error=center_error.expand(frames, 2),
        residual_degrees=median,
        pixels=torch.stack([patches.pixels[f].sum() for f in per_frame]),
        determined=determined,
        reason=reasons,
    )


def _fov(focal: float) -> float:
    return math.degrees(2 * math.atan(0.5 / focal))


@dataclass(frozen=True)
class _Doubts:
    """Why an estimate cannot be trusted. fov, fov_error: degrees; center_error: fraction of the picture."""

    options: CalibrationOptions
    unknowns: Unknowns
    state: CameraState
    error: CameraError
    fov: float
    fov_error: float
    center_error: float

    def of_frame(self, frame: int, residual: float) -> str:
        """Of one frame, whose patches disagree by `residual` degrees; empty if it can be trusted."""
        limits, half = self.options, float(self.state.half[frame])
        if half <= HALF_LIMITS[0] * 1.01 or half >= HALF_LIMITS[1] * 0.99:
            return "the normals show no depth range that fits the depth (is the scene one flat wall?)"
        if residual > limits.max_disagreement:
            return f"depth and normals do not belong together (they disagree by {residual:.0f} degrees)"
        camera = self._of_camera()
        if camera:
            return camera
        ratio, error = math.exp(2 * half), float(self.error.range[frame])
        if not error <= limits.max_range_error:
            return (
                "the scene does not fix the depth range "
                f"(far / near {ratio:.3g}, its logarithm give or take {100 * error:.0f} %)"
            )
        return ""

    def _of_camera(self) -> str:
        limits, focal = self.options, self.state.focal
        if self.unknowns.focal:
            if not FOCAL_LIMITS[0] * 1.01 < focal < FOCAL_LIMITS[1] * 0.99:
                return "no field of view fits depth and normals together"
            found = f"{self.fov:.0f} ± {self.fov_error:.0f} degrees"
            if not self.fov_error <= limits.max_fov_error:
                return f"the scene does not fix the field of view ({found})"
            reach = math.exp(_CLEARLY * min(self.error.focal, 20.0))
            if (self.fov > _PLAUSIBLE[1] > _fov(focal * reach)) or (
                self.fov < _PLAUSIBLE[0] < _fov(focal / reach)
            ):
                return f"depth and normals ask for a field of view that hardly a camera has ({found})"
        if self.unknowns.centre and not self.center_error <= limits.max_center_error:
            return (
                "the scene does not fix where the optical axis is "
                f"(to {100 * self.center_error:.0f} % of the picture)"
            )
        return ""


def _unseen(count: int, seen: list[Calibration], options: CalibrationOptions) -> Calibration:
    """Frames with nothing to measure; they share the camera of those that were seen, but have no range."""
    nan = torch.full((count,), math.nan, dtype=torch.float64)
    infinite = torch.full_like(nan, math.inf)
    if seen:
        camera = {
            name: getattr(seen[0], name)[:1].expand(count, *getattr(seen[0], name).shape[1:])
            for name in ("fov_x_degrees", "fov_error", "center", "center_error")
        }
    else:
        given = options.fov_x_degrees
        point = torch.tensor(options.principal_point, dtype=torch.float64).expand(count, 2)
        camera = {
            "fov_x_degrees": nan if given is None else torch.full_like(nan, given),
            "fov_error": infinite if given is None else torch.zeros_like(nan),
            "center": torch.full_like(point, math.nan) if options.find_center else point,
            "center_error": torch.full_like(point, math.inf if options.find_center else 0.0),
        }
    return Calibration(
        **camera,
        log_range=nan,
        log_range_error=infinite,
        residual_degrees=nan,
        pixels=torch.zeros_like(nan),
        determined=torch.zeros(count, dtype=torch.bool),
        reason=(_TOO_FEW,) * count,
    )
