"""The camera that makes depth and normals of planar patches agree: robust Gauss-Newton on the angle.

For depth z = exp(s y) (s half the log range, y the label), focal length f and principal point c, the normal
at p is proportional to (f s y_u, f s y_v, -(1 + s (p - c) . (y_u, y_v))). What is minimised is the angle
between this and the patch's predicted normal: the errors are then where they belong, in the normals, and do
not bias the estimate as the linear cross product does. Lengths are in picture widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .patches import PlanePatches

HALF_LIMITS = (0.005, 8.0)
"""Of half the log range; an estimate that ends there is none."""
FOCAL_LIMITS = (0.1, 20.0)
"""In picture widths, 157 and 3 degrees; an estimate that ends there is none."""
CENTRE_LIMIT = 1.0
"""The optical axis lies at most this far from the middle of the picture, in widths."""

_FLOOR = math.radians(0.02)  # below this, patches count as exact; keeps the robust scale from collapsing


@dataclass(frozen=True)
class CameraState:
    """focal: in picture widths. centre: (2,) principal point from the top left corner, in widths. half: (T,)
    half the log range of each frame.
    """

    focal: float
    centre: Tensor
    half: Tensor


@dataclass(frozen=True)
class Unknowns:
    """What is estimated besides the frames' ranges, shared by all frames."""

    focal: bool = True
    centre: bool = False

    @property
    def count(self) -> int:
        return self.focal + 2 * self.centre


@dataclass(frozen=True)
class Residuals:
    """Of N patches: `angle` (N, 3), predicted minus geometric unit normal, and its derivatives: `shared`
    (N, 3, S) by ln focal and the principal point, as far as they are unknown, `half` (N, 3) by the frame's
    ln half range, `slope` (N, 3, 2) by the label's slope; `geometric` (N, 3) is the geometric normal.
    """

    angle: Tensor
    shared: Tensor
    half: Tensor
    slope: Tensor
    geometric: Tensor


@dataclass(frozen=True)
class CameraFit:
    """The state that was found, with each patch's weight (N,) and variance (N,) in radians^2."""

    state: CameraState
    weights: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Arrow:
    """Sums over patches with derivatives: shared (S, S), crossed (S, T) and per frame (T,).

    Frames meet only in the shared unknowns, so the matrix has the shape of an arrow.
    """

    shared: Tensor
    cross: Tensor
    frames: Tensor

    @staticmethod
    def sum(weights: Tensor, residuals: Residuals, frame: Tensor, frames: int) -> Arrow:
        """Sum of weight * J^T J; weights (N,), frame (N,) index of 0 to frames - 1."""
        shared = torch.einsum("n,nip,niq->pq", weights, residuals.shared, residuals.shared)
        cross = torch.einsum("n,nip,ni->np", weights, residuals.shared, residuals.half)
        half = weights * residuals.half.square().sum(-1)
        return Arrow(
            shared,
            torch.zeros(frames, cross.shape[1], dtype=cross.dtype).index_add_(0, frame, cross).T,
            torch.zeros(frames, dtype=half.dtype).index_add_(0, frame, half),
        )

    def matrix(self) -> Tensor:
        """(S + T, S + T), shared unknowns first."""
        top = torch.cat([self.shared, self.cross], 1)
        return torch.cat([top, torch.cat([self.cross.T, torch.diag(self.frames)], 1)], 0)


def geometric_normals(
    patches: PlanePatches, centre: Tensor, focal: Tensor, half: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit normals (..., N, 3) of patches seen by a camera, and the length (..., N, 1) of the vector before
    normalising; focal and half broadcast against (..., N).
    """
    along = ((patches.centre - centre) * patches.slope).sum(-1)
    slope = focal * half
    raw = torch.stack(
        torch.broadcast_tensors(
            slope * patches.slope[:, 0], slope * patches.slope[:, 1], -(1 + half * along)
        ),
        -1,
    )
    length = torch.linalg.vector_norm(raw, dim=-1, keepdim=True).clamp_min(1e-9)
    return raw / length, length


def rough_start(patches: PlanePatches, centre: Tensor, frames: int, focal: float | None) -> CameraState:
    """The best point of a grid over field of view and range, by truncated squared angle; a given focal
    length is kept.
    """
    fovs = torch.linspace(12, 130, 30, dtype=torch.float64)
    focals = 0.5 / torch.tan(torch.deg2rad(fovs) / 2)
    if focal is not None:
        focals = torch.tensor([focal], dtype=torch.float64)
    halves = torch.logspace(math.log10(0.05), math.log10(4.0), 28, dtype=torch.float64)
    costs = torch.zeros(frames, len(focals), len(halves), dtype=torch.float64)
    for b in range(frames):
        part = patches.take(patches.frame == b)
        if len(part) > 600:
            part = part.take(torch.linspace(0, len(part) - 1, 600).long())
        normal, _ = geometric_normals(part, centre, focals[:, None, None], halves[None, :, None])
        squared = (normal - part.normal).square().sum(-1)
        costs[b] = (part.weight * squared / (squared + 0.04)).sum(-1)
    per_focal, best_half = costs.min(-1)
    index = int(per_focal.sum(0).argmin())
    return CameraState(float(focals[index]), centre, halves[best_half[:, index]])


def residuals_of(patches: PlanePatches, state: CameraState, unknowns: Unknowns) -> Residuals:
    """How patches and camera disagree, with derivatives."""
    s = state.half.to(patches.slope)[patches.frame]
    normal, length = geometric_normals(patches, state.centre, torch.tensor(state.focal, dtype=s.dtype), s)
    at = patches.centre - state.centre
    g = patches.slope
    along = (at * g).sum(-1)
    zero = torch.zeros_like(along)
    fs = state.focal * s

    def tangent(*raw: Tensor) -> Tensor:
        d = torch.stack(raw, -1)
        return (d - normal * (normal * d).sum(-1, keepdim=True)) / length

    shared = []
    if unknowns.focal:
        shared.append(tangent(fs * g[:, 0], fs * g[:, 1], zero))
    if unknowns.centre:
        shared += [tangent(zero, zero, s * g[:, 0]), tangent(zero, zero, s * g[:, 1])]
    return Residuals(
        angle=patches.normal - normal,
        shared=torch.stack(shared, -1) if shared else at.new_zeros(len(patches), 3, 0),
        half=tangent(fs * g[:, 0], fs * g[:, 1], -s * along),
        slope=torch.stack([tangent(fs, zero, -s * at[:, 0]), tangent(zero, fs, -s * at[:, 1])], -1),
        geometric=normal,
    )


def refine(patches: PlanePatches, state: CameraState, unknowns: Unknowns) -> CameraFit:
    """Robust Gauss-Newton from a state near the answer."""
    frames, count = state.half.shape[0], unknowns.count
    middle = state.centre
    for step in range(25):
        r = residuals_of(patches, state, unknowns)
        # errors of the slope seen as errors of the angle, half the trace over the two tangent directions
        slope_var = 0.5 * torch.einsum("nic,ncd,nid->n", r.slope, patches.slope_error, r.slope)
        squared = r.angle.square().sum(-1)
        # The median of a two-dimensional Gaussian's length is 1.177 sigma.
        reliable = slope_var <= slope_var.median().clamp_min(1e-6) * 2
        fresh = float(squared[reliable].median().sqrt()) / 1.177
        scale = max(fresh, _FLOOR, 0.2 * 0.6**step)
        variance = scale * scale + slope_var
        weights = patches.weight / variance / (1 + squared / (variance * 9.0)) ** 2
        matrix = Arrow.sum(weights, r, patches.frame, frames).matrix()
        by_half = weights * (r.half * r.angle).sum(-1)
        gradient = torch.cat(
            [
                torch.einsum("n,nip,ni->p", weights, r.shared, r.angle),
                torch.zeros(frames, dtype=torch.float64).index_add_(0, patches.frame, by_half),
            ]
        )
        damped = matrix + torch.diag(1e-4 * matrix.diagonal() + 1e-9)
        delta = torch.linalg.solve(damped, gradient).clamp(-0.4, 0.4)
        focal, centre = state.focal, state.centre
        if unknowns.focal:
            focal = min(max(focal * math.exp(float(delta[0])), FOCAL_LIMITS[0]), FOCAL_LIMITS[1])
        if unknowns.centre:
            moved = centre + delta[count - 2 : count].clamp(-0.1, 0.1)
            centre = middle + (moved - middle).clamp(-CENTRE_LIMIT, CENTRE_LIMIT)
        state = CameraState(focal, centre, (state.half * torch.exp(delta[count:])).clamp(*HALF_LIMITS))
        if step > 12 and float(delta.abs().max()) < 1e-6:
            break
    return CameraFit(state, weights, variance)
