"""Depth made consistent with the normals: they know slopes well, the depth knows where things are.

The unknown is the correction of ln depth. On a surface with normal n the step between two pixels with rays r_i
and r_j is ln(n . r_i) - ln(n . r_j), exact on planes at any angle, and links ask for these steps. Everywhere a
weak bridge asks that the correction goes on as it is, so that a surface beside a jump, or one too grazing for its
normals to say much, moves along with what is beside it: an error that is smooth over the picture does not stop at
silhouettes. A still weaker data term holds on to the given depth. How weak both are follows from the angle by
which depth and normals contradict each other: depth that agrees with its normals is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import pixel_rays
from .grid_solver import GridSystem, solve
from .median import median_of_nine

_GRAZING = 0.04  # cosine below which a normal says nothing about the step
_BRIDGE = 0.01  # of a facing surface's link, where depth and normals contradict each other by _USUAL
_USUAL = 15.0  # degrees; from here on only the ratio of bridge and data matters
_BASELINE = 8  # pixels over which slopes are compared, so that the noise of single pixels has no say
_SLANTED = 0.1  # weight of a link below which it has no say in the comparison


@dataclass(frozen=True)
class RefinementOptions:
    """reach: fraction of the picture's longer side over which the depth's error is thought to be alike; larger
    changes more. edge: jump in fractions of the log range from which neighbours count as separate surfaces.
    slope_degrees: error of normals that is not yet a jump. rounds: of reweighting. iterations: of the solver
    in each.
    """

    reach: float = 0.4
    edge: float = 0.006
    slope_degrees: float = 10.0
    rounds: int = 3
    iterations: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.reach <= 10 or not self.edge > 0 or self.rounds < 1 or self.iterations < 1:
            raise ValueError(
                f"refinement: found {self}; reach, edge, rounds and iterations must be positive."
            )


def refine_depth(
    depth: Tensor,
    normal: Tensor,
    mask: Tensor,
    intrinsics: Tensor,
    confidence: Tensor | None = None,
    options: RefinementOptions | None = None,
) -> Tensor:
    """Refined depth (B, H, W), in the unit of the given one; pixels outside the mask keep theirs.

    Args: depth (B, H, W) positive; normal (B, H, W, 3) unit OpenCV; mask (B, H, W) bool; intrinsics (3, 3) or
    (B, 3, 3); confidence (B, H, W) in [0, 1], if given, scales how much a pixel's depth counts.
    """
    options = options or RefinementOptions()
    if normal.shape != (*depth.shape, 3) or mask.shape != depth.shape:
        raise ValueError(
            f"depth, normal, mask: found {tuple(depth.shape)}, {tuple(normal.shape)}, {tuple(mask.shape)}; "
            "expected (B, H, W), (B, H, W, 3), (B, H, W)."
        )
    _, height, width = depth.shape
    mask = mask & torch.isfinite(depth) & (depth > 0)
    given = torch.log(torch.where(mask, depth, torch.ones_like(depth))).float()
    rays = pixel_rays(height, width, intrinsics).to(given)
    log_range = _spread(given, mask)
    focal = float(intrinsics[..., 0, 0].mean()) * width
    calm = median_of_nine(median_of_nine(given, mask), mask)
    trust = mask.to(given) if confidence is None else mask * confidence.clamp(1e-3, 1)

    links = [_Links.build(given, calm, normal.float(), rays, mask, dim) for dim in (2, 1)]
    contradiction = _contradiction(calm, links, focal)
    firm = (math.radians(_USUAL) / contradiction).square().clamp(1.0, 1e4)
    sticking = ((given - calm) / (options.edge * log_range)).square()
    data = trust / (1 + sticking) * _BRIDGE * firm / (options.reach / 2 * max(height, width)) ** 2
    # where there is no depth the correction is only passed on
    passing = torch.where(mask, trust, torch.ones_like(trust))
    bridges = [_BRIDGE * firm * torch.minimum(_first(passing, dim), _second(passing, dim)) for dim in (2, 1)]

    correction, judged = torch.zeros_like(given), calm
    for _ in range(options.rounds):
        weights, rhs = [], torch.zeros_like(given)
        for link, bridge in zip(links, bridges, strict=True):
            weight = link.weights(
                judged, options.edge * log_range, math.radians(options.slope_degrees) / focal
            )
            weights.append(weight + bridge)
            push = weight * (link.step - link.given) + bridge * link.carried
            _second(rhs, link.dim).add_(push)
            _first(rhs, link.dim).sub_(push)
        system = GridSystem.build(weights[0], weights[1], data)
        correction = solve(system, rhs, correction, options.iterations)
        judged = given + correction
    return torch.where(mask, torch.exp(judged), depth.float()).to(depth.dtype)


@dataclass(frozen=True)
class _Links:
    """Links between neighbours along `dim` of (B, H, W). step: of ln depth that the normals expect; weight: of
    that, 0 where they know nothing; given: step of the given ln depth; carried: what a bridge asks the
    correction to do, which is nothing but to undo single pixels.
    """

    dim: int
    step: Tensor
    weight: Tensor
    given: Tensor
    carried: Tensor

    @staticmethod
    def build(given: Tensor, calm: Tensor, normal: Tensor, rays: Tensor, mask: Tensor, dim: int) -> _Links:
        step, weight = _expected_steps(normal, rays, dim)
        both = _first(mask, dim) & _second(mask, dim)
        found = _second(given, dim) - _first(given, dim)
        carried = _second(calm, dim) - _first(calm, dim) - found
        return _Links(dim, step, weight * both, found, torch.where(both, carried, torch.zeros_like(carried)))

    def weights(self, judged: Tensor, edge: Tensor, slope: float) -> Tensor:
        """Weights that links over a jump of `judged` (B, H, W) lose; a normal off by `slope`, an angle over the
        focal length in pixels, is no jump: it changes the step by about slope / weight^(1/2).
        """
        miss = _second(judged, self.dim) - _first(judged, self.dim) - self.step
        spread = edge + slope / self.weight.sqrt().clamp_min(_GRAZING**2)
        return self.weight / (1 + (miss / spread).square()).square()


def _first(x: Tensor, dim: int) -> Tensor:
    return x.narrow(dim, 0, x.shape[dim] - 1)


def _second(x: Tensor, dim: int) -> Tensor:
    return x.narrow(dim, 1, x.shape[dim] - 1)


def _expected_steps(normal: Tensor, rays: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Steps of ln depth between neighbours along dim of (B, H, W), and weights: how little a turn of the normal
    changes the step. With c the cosine of incidence and a the normal's component along dim, a turn changes it
    by about (1 + (a / c)^2)^(1/2) / c: on the ground, steps down the picture are known far worse than steps
    across it.
    """
    ray_dim = dim if rays.ndim == 4 else dim - 1
    one, two = _first(rays, ray_dim), _second(rays, ray_dim)
    mean = F.normalize(_first(normal, dim) + _second(normal, dim), dim=-1)
    near = (mean * one).sum(-1)
    far = (mean * two).sum(-1)
    cosine = -(mean * F.normalize(one + two, dim=-1)).sum(-1)
    usable = (cosine > _GRAZING) & (near < 0) & (far < 0)
    ratio = torch.where(usable, near / torch.where(usable, far, torch.ones_like(far)), torch.ones_like(near))
    along = mean[..., 0 if dim == 2 else 1].square()
    square = cosine.clamp_min(_GRAZING).square()
    weight = torch.where(usable, square * square / (square + along), torch.zeros_like(cosine))
    return torch.log(ratio.clamp(0.5, 2.0)), weight


def _contradiction(log_depth: Tensor, links: list[_Links], focal: float) -> Tensor:
    """Angle in radians (B, 1, 1) by which slopes of ln depth (B, H, W) are off those that the normals expect:
    1.4826 times the median over surfaces that are not too slanted; `_USUAL` where there are hardly any.
    """
    out = []
    for b in range(len(log_depth)):
        found = []
        for link in links:
            count = log_depth.shape[link.dim] - _BASELINE
            if count < 1:
                continue
            dim = link.dim - 1
            start = torch.zeros_like(log_depth[b].narrow(dim, 0, 1))
            summed = torch.cat([start, link.step[b]], dim).cumsum(dim)
            unusable = torch.cat([start, (link.weight[b] <= _SLANTED).to(start)], dim).cumsum(dim)
            off = log_depth[b] - summed
            ends = [(x.narrow(dim, _BASELINE, count) - x.narrow(dim, 0, count)) for x in (off, unusable)]
            # a jump is no slope, but the median does not mind the few
            angle = (
                ends[0].abs() * focal / _BASELINE * link.weight[b].narrow(dim, _BASELINE // 2, count).sqrt()
            )
            found.append(angle[ends[1] == 0])
        angles = torch.cat(found) if found else log_depth.new_zeros(0)
        if len(angles) < 100:
            out.append(log_depth.new_tensor(math.radians(_USUAL)))
        else:
            out.append(1.4826 * angles[:: max(1, len(angles) // 50_000)].median())
    return torch.stack(out)[:, None, None].clamp_min(1e-6)


def _spread(log_depth: Tensor, mask: Tensor) -> Tensor:
    """Log range of each picture between its 2 % and 98 % percentiles, (B, 1, 1)."""
    out = []
    for values, valid in zip(log_depth, mask, strict=True):
        ordered = values[valid]
        ordered = ordered[:: max(1, ordered.numel() // 100_000)].sort().values
        if ordered.numel() < 2:
            out.append(torch.ones((), device=log_depth.device))
            continue
        low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.02, 0.98))
        out.append((high - low).clamp_min(1e-3))
    return torch.stack(out)[:, None, None]
