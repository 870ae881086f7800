"""How far a fitted camera can be trusted: standard errors that include errors of the model.

Errors of predicted normals and depth are not independent from pixel to pixel. Neighbouring patches share
them, and a network that is wrong is often wrong alike over the whole picture: normals pulled toward the
camera, depth bent. Three sources are added. What blocks of patches admit (the sandwich formula). What the
residuals admit about errors that are smooth over the picture: their part in a small basis of smooth fields
gives the size of such errors, and the fit's response to each field says what they do to the camera; the part
that the fit has absorbed cannot be seen, and is taken to be as large as the part that can. And what the scene
could tell at best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .camera_fit import Arrow, CameraFit, Residuals, Unknowns, residuals_of
from .patches import PlanePatches

# A neighbourhood's normals are never believed beyond this when the error of the answer is stated: a flat
# wall seen almost head on would otherwise "measure" the camera from rounding errors.
_TRUST = math.radians(0.25)
# On simulated scenes true errors are this much larger than what blocks admit, which share errors too, ...
_SHARED_ERRORS = 1.5
# ... and this much larger than what smooth residuals admit.
_UNSEEN_ERRORS = 1.6


@dataclass(frozen=True)
class CameraError:
    """Standard errors: of ln focal, of the principal point (2,) in picture widths, of each frame's ln range
    (T,). Zero for what was given.
    """

    focal: float
    centre: Tensor
    range: Tensor


def camera_error(patches: PlanePatches, fit: CameraFit, unknowns: Unknowns, aspect: float) -> CameraError:
    """Standard errors of a fit; aspect: the picture's height / width."""
    frames, count = fit.state.half.shape[0], unknowns.count
    r = residuals_of(patches, fit.state, unknowns)
    arrow = Arrow.sum(fit.weights, r, patches.frame, frames)
    inverse = torch.linalg.pinv(arrow.matrix(), rtol=1e-12, hermitian=True)
    variance = (
        _SHARED_ERRORS**2 * _of_blocks(patches, fit.weights, r, inverse)
        + _UNSEEN_ERRORS**2 * _of_smooth_fields(patches, fit, r, inverse, aspect)
        + _at_best(patches, fit, r)
    )
    errors = variance.clamp_min(0).sqrt()
    place = int(unknowns.focal)
    return CameraError(
        focal=float(errors[0]) if unknowns.focal else 0.0,
        centre=errors[place : place + 2] if unknowns.centre else torch.zeros(2, dtype=torch.float64),
        range=errors[count:],
    )


def _of_blocks(patches: PlanePatches, weights: Tensor, r: Residuals, inverse: Tensor) -> Tensor:
    """(S + T,) variances by the sandwich formula. A block is the same place in all frames: what a network
    gets wrong there it gets wrong in the next frame too.
    """
    count = r.shared.shape[2]
    ids, block = torch.unique(patches.block, return_inverse=True)
    score = torch.zeros(len(ids), len(inverse), dtype=torch.float64)
    score[:, :count].index_add_(0, block, weights[:, None] * torch.einsum("nip,ni->np", r.shared, r.angle))
    own = weights * (r.half * r.angle).sum(-1)
    score.index_put_((block, count + patches.frame), own, accumulate=True)
    few = len(ids) / max(1, len(ids) - count - 1)
    return few * (score @ inverse).square().sum(0)


def _of_smooth_fields(
    patches: PlanePatches, fit: CameraFit, r: Residuals, inverse: Tensor, aspect: float
) -> Tensor:
    """(S + T,) variances from errors that are smooth over the picture, common to all frames or of one."""
    count, frames = r.shared.shape[2], fit.state.half.shape[0]
    fields = _smooth_fields(patches, r.geometric, aspect)
    common = _field_variance(fields, r.angle, fit.weights, count + 1)
    each = [
        _field_variance(fields[:, own], r.angle[own], fit.weights[own], 1)
        for own in (patches.frame == t for t in range(frames))
    ]
    single = max(0.0, sum(each) / frames - common) if frames > 1 else 0.0
    # What a field of unit size adds to the gradient: K fields, T frames
    pull = torch.einsum("n,nip,kni->nkp", fit.weights, r.shared, fields)
    shared = torch.zeros(frames, *pull.shape[1:], dtype=torch.float64).index_add_(0, patches.frame, pull)
    pull = torch.einsum("n,ni,kni->nk", fit.weights, r.half, fields)
    half = torch.zeros(frames, pull.shape[1], dtype=torch.float64).index_add_(0, patches.frame, pull)
    moved = torch.cat([shared.sum(0), half.T], 1) @ inverse
    out = common * moved.square().sum(0)
    if single:
        moved = shared @ inverse[:count] + half[..., None] * inverse[count:, None]
        out = out + single * moved.square().sum((0, 1))
    return out


def _smooth_fields(patches: PlanePatches, normal: Tensor, aspect: float) -> Tensor:
    """(K, N, 3) changes of the normals (N, 3) that are smooth over the picture: toward each axis, times the
    Legendre polynomials up to the second degree.
    """
    x, y = 2 * patches.centre[:, 0] - 1, 2 * patches.centre[:, 1] / aspect - 1
    maps = (
        torch.ones_like(x),
        math.sqrt(3) * x,
        math.sqrt(3) * y,
        3 * x * y,
        math.sqrt(5) * (1.5 * x * x - 0.5),
        math.sqrt(5) * (1.5 * y * y - 0.5),
    )
    out = []
    for axis in torch.eye(3, dtype=normal.dtype):
        tangent = axis - normal * (normal @ axis)[:, None]
        out += [tangent * m[:, None] for m in maps]
    return torch.stack(out)


def _field_variance(fields: Tensor, residual: Tensor, weights: Tensor, absorbed: int) -> float:
    """Variance of the smooth fields' coefficients (K, N, 3) that the residuals (N, 3) ask for; absorbed: how
    many of their directions the fit has taken out already.
    """
    share = weights / weights.sum().clamp_min(1e-30)
    gram = torch.einsum("n,kni,lni->kl", share, fields, fields)
    size = float(gram.diagonal().sum())
    if not size > 0:
        return 0.0
    ridge = torch.eye(len(fields), dtype=gram.dtype) * (1e-4 * size / len(fields))
    found = torch.linalg.solve(gram + ridge, torch.einsum("n,kni,ni->k", share, fields, residual))
    return float(found @ gram @ found) / size * len(fields) / (len(fields) - absorbed)


def _at_best(patches: PlanePatches, fit: CameraFit, r: Residuals) -> Tensor:
    """(S + T,) variances if every block of each frame carries one independent error of _TRUST."""
    frames = fit.state.half.shape[0]
    places = int(patches.block.max()) + 1
    _, block, members = torch.unique(
        patches.block + places * patches.frame, return_inverse=True, return_counts=True
    )
    v = fit.variance
    share = fit.weights * v / ((_TRUST**2 + v - v.min()) * members[block])
    information = Arrow.sum(share, r, patches.frame, frames).matrix()
    return torch.linalg.inv(information + 1e-6 * torch.eye(len(information))).diagonal()
