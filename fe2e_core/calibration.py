"""Field of view and depth range from log-depth and normals: the two predictions calibrate each other.

For depth z = exp(s y) (s half the log range, y the label) and focal length f, the normal at offset (u, v)
from the principal point is proportional to (f s y_u, f s y_v, -(1 + s (u y_u + v y_v))). Both numbers
therefore follow from the agreement of slopes of the label with normals. The slopes come from planar patches
(see patches.py), so that they are nearly free of error, and what is minimised is the angle between the
patch's mean normal and the predicted one: the errors are then where they belong, in the normals, and do not
bias the estimate as the linear cross product does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import focal_from_fov, intrinsics_from_fov
from .patches import PlanePatches, plane_patches, tile_size

_FLOOR = math.radians(0.02)  # below this, patches count as exact; keeps the robust scale from collapsing
# A neighbourhood's normals are never believed beyond this when the error of the answer is stated: a flat
# wall seen almost head on would otherwise "measure" the camera from rounding errors.
_TRUST = math.radians(0.25)
# Errors are shared beyond neighbourhoods: on 100 simulated scenes the true error is 1.5 times what blocks
# admit.
_SHARED_ERRORS = 1.5
_MOST_PATCHES = 20_000  # of a whole clip
_TOO_FEW = "too few smooth, unmasked pixels to measure"
_HALF_LIMITS = (0.005, 8.0)
_FOCAL_LIMITS = (0.1, 20.0)


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    fov_x_degrees: a known horizontal field of view, then only the range is estimated. principal_point:
    fractions of the picture. one_camera: one field of view for all frames (each still has its own range, as
    Eq. 7 normalises each frame by itself). Results whose standard error exceeds max_fov_error (degrees) or
    max_range_error (fraction) are reported as undetermined.
    """

    fov_x_degrees: float | None = None
    principal_point: tuple[float, float] = (0.5, 0.5)
    one_camera: bool = False
    max_fov_error: float = 12.0
    max_range_error: float = 0.3


@dataclass(frozen=True)
class Calibration:
    """What the pictures say about their camera; one entry per frame.

    fov_x_degrees, log_range: (B,) float64, the horizontal field of view and ln(far / near) of Eq. 7's label.
    fov_error, log_range_error: (B,) standard errors, in degrees and in units of log_range; infinite where
    the scene holds no information, zero for a given field of view. residual_degrees: (B,) median angle that
    is left between predicted and geometric normals of patches. pixels: (B,) number of pixels behind the
    estimate. determined: (B,) bool; reason: why not, one text per frame, empty where determined. What is
    not determined is nan, never a guess.
    """

    fov_x_degrees: Tensor
    fov_error: Tensor
    log_range: Tensor
    log_range_error: Tensor
    residual_degrees: Tensor
    pixels: Tensor
    determined: Tensor
    reason: tuple[str, ...]
    principal_point: tuple[float, float] = (0.5, 0.5)

    def intrinsics(self, height: int, width: int) -> Tensor:
        """Normalised intrinsics (B, 3, 3) of square pixels for a picture of this size."""
        return intrinsics_from_fov(self.fov_x_degrees, height, width, *self.principal_point)


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
    stacked = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in (
            "fov_x_degrees",
            "fov_error",
            "log_range",
            "log_range_error",
            "residual_degrees",
            "pixels",
            "determined",
        )
    }
    reasons = tuple(text for p in parts for text in p.reason)
    return Calibration(**stacked, reason=reasons, principal_point=options.principal_point)


def _checked(log_depth: Tensor, normal: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    if log_depth.ndim != 3 or normal.shape != (*log_depth.shape, 3):
        raise ValueError(
            f"log_depth, normal: found shapes {tuple(log_depth.shape)} and {tuple(normal.shape)}, "
            "expected (B, H, W) and (B, H, W, 3)."
        )
    if min(log_depth.shape[1:]) < 32:
        raise ValueError(f"log_depth: found {tuple(log_depth.shape[1:])} pixels, expected at least 32 x 32.")
    if mask is None:
        mask = torch.ones_like(log_depth, dtype=torch.bool)
    if mask.shape != log_depth.shape:
        raise ValueError(f"mask: found shape {tuple(mask.shape)}, expected {tuple(log_depth.shape)}.")
    # A network's label is cut off at -1 and 1; what lies beyond is flat in the label and sloped in the world.
    usable = torch.isfinite(log_depth) & (log_depth.abs() != 1) & torch.isfinite(normal).all(-1)
    return log_depth.detach(), normal.detach(), mask & usable


@dataclass(frozen=True)
class _State:
    """Focal length in picture widths and half log ranges (B,)."""

    focal: float
    half: Tensor


def _calibrate_group(
    log_depth: Tensor,
    normal: Tensor,
    mask: Tensor,
    options: CalibrationOptions,
    on_frame: Callable[[], None] | None,
) -> Calibration:
    frames, height, width = log_depth.shape
    tile = tile_size(height, width)
    origin = torch.tensor(
        [options.principal_point[0], options.principal_point[1] * height / width], dtype=torch.float64
    )
    given = None if options.fov_x_degrees is None else float(focal_from_fov(options.fov_x_degrees))
    half = torch.full((frames,), 0.8, dtype=torch.float64)
    limit = max(60, _MOST_PATCHES // frames)
    state = None
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
        if not bool(enough.any()):
            return _nothing(frames, given, patches, _TOO_FEW, options)
        if not bool(enough.all()):
            index = torch.nonzero(enough)[:, 0]
            seen = _calibrate_group(log_depth[index], normal[index], mask[index], options, on_frame)
            return _with_unseen(seen, index, frames)
        state = _start(patches, origin, frames, given) if state is None else state
        state, weights, variance = _refine(patches, origin, state, given)
        half = state.half.clamp(0.02, 6.0)
    return _report(patches, origin, state, weights, variance, given, options)


def _with_unseen(seen: Calibration, index: Tensor, frames: int) -> Calibration:
    """The result of some frames, among frames that were masked: these share the camera, but have no range."""

    def spread(values: Tensor, missing: float) -> Tensor:
        out = torch.full((frames,), missing, dtype=values.dtype)
        out[index] = values
        return out

    reasons = [_TOO_FEW] * frames
    for place, text in zip(index.tolist(), seen.reason, strict=True):
        reasons[place] = text
    return Calibration(
        fov_x_degrees=spread(seen.fov_x_degrees, float(seen.fov_x_degrees[0])),
        fov_error=spread(seen.fov_error, float(seen.fov_error[0])),
        log_range=spread(seen.log_range, math.nan),
        log_range_error=spread(seen.log_range_error, math.inf),
        residual_degrees=spread(seen.residual_degrees, math.nan),
        pixels=spread(seen.pixels, 0.0),
        determined=spread(seen.determined, False),
        reason=tuple(reasons),
        principal_point=seen.principal_point,
    )


def _predict(patches: PlanePatches, origin: Tensor, focal: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted unit normals (..., N, 3) and the length of the unnormalised vector (..., N, 1)."""
    at = patches.centre - origin
    along = (at * patches.slope).sum(-1)
    slope = focal * half
    raw = torch.stack(
        torch.broadcast_tensors(
            slope * patches.slope[:, 0], slope * patches.slope[:, 1], -(1 + half * along)
        ),
        -1,
    )
    length = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(1e-9)
    return raw / length, length


def _start(patches: PlanePatches, origin: Tensor, frames: int, given: float | None) -> _State:
    """Robust start: the best point of a grid over field of view and range, by truncated squared angle."""
    fovs = torch.linspace(12, 130, 30, dtype=torch.float64)
    focals = torch.tensor([given], dtype=torch.float64) if given else 0.5 / torch.tan(torch.deg2rad(fovs) / 2)
    halves = torch.logspace(math.log10(0.05), math.log10(4.0), 28, dtype=torch.float64)
    costs = torch.zeros(frames, len(focals), len(halves), dtype=torch.float64)
    for b in range(frames):
        part = patches.take(patches.frame == b)
        if len(part) > 600:
            part = part.take(torch.linspace(0, len(part) - 1, 600).long())
        predicted, _ = _predict(part, origin, focals[:, None, None], halves[None, :, None])
        squared = (predicted - part.normal).square().sum(-1)
        costs[b] = (part.weight * squared / (squared + 0.04)).sum(-1).cpu()
    per_focal, best_half = costs.min(-1)
    focal_index = int(per_focal.sum(0).argmin())
    return _State(float(focals[focal_index]), halves[best_half[:, focal_index]])


def _jacobian(patches: PlanePatches, origin: Tensor, state: _State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residual (N, 3) and its derivatives by ln focal (N, 3), by ln half range (N, 3) and by the slope (N,
    3, 2).
    """
    s = state.half.to(patches.slope)[patches.frame]
    predicted, length = _predict(patches, origin, torch.tensor(state.focal, dtype=s.dtype), s)
    at = patches.centre - origin
    g = patches.slope
    along = (at * g).sum(-1)
    zero = torch.zeros_like(along)
    fs = state.focal * s
    by_focal = torch.stack([fs * g[:, 0], fs * g[:, 1], zero], -1)
    by_half = torch.stack([fs * g[:, 0], fs * g[:, 1], -s * along], -1)
    by_u = torch.stack([fs, zero, -s * at[:, 0]], -1)
    by_v = torch.stack([zero, fs, -s * at[:, 1]], -1)

    def tangent(d: Tensor) -> Tensor:
        return (d - predicted * (predicted * d).sum(-1, keepdim=True)) / length

    slope = torch.stack([tangent(by_u), tangent(by_v)], -1)
    return patches.normal - predicted, tangent(by_focal), tangent(by_half), slope


def _refine(
    patches: PlanePatches, origin: Tensor, state: _State, given: float | None
) -> tuple[_State, Tensor, Tensor]:
    """Robust Gauss-Newton on the angle; returns the state, the patches' weights and their variances
    (radians^2).
    """
    frames = state.half.shape[0]
    scale = None
    for step in range(25):
        residual, by_focal, by_half, by_slope = _jacobian(patches, origin, state)
        # errors of the slope seen as errors of the angle, half the trace over the two tangent directions
        slope_var = 0.5 * torch.einsum("nic,ncd,nid->n", by_slope, patches.slope_error, by_slope)
        squared = residual.square().sum(-1)
        # The median of a two-dimensional Gaussian's length is 1.177 sigma.
        reliable = slope_var <= slope_var.median().clamp_min(1e-6) * 2
        fresh = float(squared[reliable].median().sqrt()) / 1.177
        scale = max(fresh, _FLOOR, 0.2 * 0.6**step)
        variance = scale * scale + slope_var
        x = squared / (variance * 9.0)
        weights = patches.weight / variance / (1 + x) ** 2
        size = frames + 1
        normal_matrix = torch.zeros(size, size, dtype=torch.float64)
        gradient = torch.zeros(size, dtype=torch.float64)
        index = patches.frame + 1
        if given is None:
            normal_matrix[0, 0] = (weights * by_focal.square().sum(-1)).sum()
            gradient[0] = (weights * (by_focal * residual).sum(-1)).sum()
            cross = torch.zeros(size, dtype=torch.float64).index_add_(
                0, index, (weights * (by_focal * by_half).sum(-1))
            )
            normal_matrix[0, 1:] = cross[1:]
            normal_matrix[1:, 0] = cross[1:]
        diagonal = torch.zeros(size, dtype=torch.float64).index_add_(
            0, index, weights * by_half.square().sum(-1)
        )
        normal_matrix[range(1, size), range(1, size)] = diagonal[1:]
        gradient += torch.zeros(size, dtype=torch.float64).index_add_(
            0, index, weights * (by_half * residual).sum(-1)
        )
        damped = normal_matrix + torch.diag(1e-4 * normal_matrix.diagonal() + 1e-9)
        if given is not None:
            damped[0, 0] = 1.0
        delta = torch.linalg.solve(damped, gradient).clamp(-0.4, 0.4)
        focal = state.focal if given is not None else state.focal * math.exp(float(delta[0]))
        focal = min(max(focal, _FOCAL_LIMITS[0]), _FOCAL_LIMITS[1])
        state = _State(focal, (state.half * torch.exp(delta[1:])).clamp(*_HALF_LIMITS))
        if step > 12 and float(delta.abs().max()) < 1e-6:
            break
    return state, weights, variance


def _report(
    patches: PlanePatches,
    origin: Tensor,
    state: _State,
    weights: Tensor,
    variance: Tensor,
    given: float | None,
    options: CalibrationOptions,
) -> Calibration:
    """Standard errors by the sandwich formula over blocks, since neighbouring patches share their errors."""
    frames = state.half.shape[0]
    residual, by_focal, by_half, _ = _jacobian(patches, origin, state)
    jac = torch.zeros(len(patches), 3, frames + 1, dtype=torch.float64)
    if given is None:
        jac[:, :, 0] = by_focal
    jac[torch.arange(len(patches)), :, patches.frame + 1] = by_half
    bread = torch.einsum("n,nip,niq->pq", weights, jac, jac)
    score = weights[:, None] * torch.einsum("nip,ni->np", jac, residual)
    ids, block, members = torch.unique(patches.block, return_inverse=True, return_counts=True)
    by_block = torch.zeros(len(ids), frames + 1, dtype=torch.float64).index_add_(0, block, score)
    inverse = torch.linalg.pinv(bread, rtol=1e-12, hermitian=True)
    few = len(ids) / max(1, len(ids) - frames - 1)
    covariance = few * (inverse @ (by_block.T @ by_block) @ inverse)
    # What the scene could tell at best: every block of patches carries one independent error of _TRUST.
    share = weights * variance / ((_TRUST**2 + variance - variance.min()) * members[block])
    information = torch.einsum("n,nip,niq->pq", share, jac, jac)
    active = torch.ones(frames + 1, dtype=torch.float64)
    active[0] = 0.0 if given is not None else 1.0
    at_best = torch.linalg.inv(information + torch.diag(1e-6 + (1 - active)))
    errors = (_SHARED_ERRORS**2 * covariance.diagonal() + at_best.diagonal()).clamp_min(0).sqrt()
    focal = state.focal
    # d fov / d ln f = -2 * 0.5 f / (f^2 + 0.25)
    fov_error = math.degrees(focal / (focal * focal + 0.25)) * float(errors[0]) if given is None else 0.0
    angle = residual.square().sum(-1).sqrt()
    per_frame = [patches.frame == b for b in range(frames)]
    median = torch.stack([torch.rad2deg(angle[f].median()) for f in per_frame])
    used = torch.stack([patches.pixels[f].sum() for f in per_frame])
    fov = math.degrees(2 * math.atan(0.5 / focal))
    reasons = []
    for b in range(frames):
        reasons.append(_doubt(state, b, fov_error, float(errors[1 + b]), float(median[b]), options))
    determined = torch.tensor([not r for r in reasons])
    unknown = torch.full((frames,), math.nan, dtype=torch.float64)
    log_range = 2 * state.half
    fovs = torch.full((frames,), fov, dtype=torch.float64)
    return Calibration(
        fov_x_degrees=torch.where(determined, fovs, unknown) if given is None else fovs,
        fov_error=torch.full((frames,), fov_error, dtype=torch.float64),
        log_range=torch.where(determined, log_range, unknown),
        log_range_error=log_range * errors[1:],
        residual_degrees=median.cpu(),
        pixels=used.cpu(),
        determined=determined,
        reason=tuple(reasons),
        principal_point=options.principal_point,
    )


def _doubt(
    state: _State,
    frame: int,
    fov_error: float,
    range_error: float,
    residual: float,
    options: CalibrationOptions,
) -> str:
    """Why an estimate cannot be trusted; empty if it can."""
    half = float(state.half[frame])
    if half <= _HALF_LIMITS[0] * 1.01 or half >= _HALF_LIMITS[1] * 0.99:
        return "the normals show no depth range that fits the depth (is the scene one flat wall?)"
    if options.fov_x_degrees is None and not _FOCAL_LIMITS[0] * 1.01 < state.focal < _FOCAL_LIMITS[1] * 0.99:
        return "no field of view fits depth and normals together"
    if not fov_error <= options.max_fov_error:
        return f"the scene does not fix the field of view (standard error {fov_error:.0f} degrees)"
    if not range_error <= options.max_range_error:
        return f"the scene does not fix the depth range (standard error {100 * range_error:.0f} %)"
    if residual > 30:
        return f"depth and normals do not belong together (they disagree by {residual:.0f} degrees)"
    return ""


def _nothing(
    frames: int, given: float | None, patches: PlanePatches, reason: str, options: CalibrationOptions
) -> Calibration:
    nan = torch.full((frames,), math.nan, dtype=torch.float64)
    infinite = torch.full((frames,), math.inf, dtype=torch.float64)
    fov = nan if options.fov_x_degrees is None else torch.full_like(nan, options.fov_x_degrees)
    return Calibration(
        fov_x_degrees=fov,
        fov_error=infinite if given is None else torch.zeros_like(nan),
        log_range=nan,
        log_range_error=infinite,
        residual_degrees=nan,
        pixels=torch.bincount(patches.frame, patches.pixels, minlength=frames).double(),
        determined=torch.zeros(frames, dtype=torch.bool),
        reason=(reason,) * frames,
        principal_point=options.principal_point,
    )
