"""Depth made consistent with the normals: they know slopes well, the depth knows where things are.

The unknown is ln depth. On a surface with normal n the step between two pixels with rays r_i and r_j is
ln(n . r_i) - ln(n . r_j), exact on planes at any angle. Links ask for these steps, a weak data term asks
for the given depth; links over a jump, and data of a pixel that sticks out, lose their weight. Within about
`reach` the result follows the normals, beyond it the given depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import pixel_rays
from .grid_solver import GridSystem, solve

_GRAZING = 0.06  # cosine below which a normal says nothing about the step


@dataclass(frozen=True)
class RefinementOptions:
    """reach: fraction of the picture's longer side within which normals decide, larger changes more. edge:
    jump in fractions of the log range from which neighbours count as separate surfaces. slope_degrees:
    error of normals that is not yet a jump. rounds: of reweighting. iterations: of the solver in each.
    """

    reach: float = 0.4
    edge: float = 0.006
    slope_degrees: float = 10.0
    rounds: int = 3
    iterations: int = 6

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

    steps, weights, widths = [], [], []
    for dim in (2, 1):
        step, weight = _expected_steps(normal.float(), rays, dim)
        both = _first(mask, dim) & _second(mask, dim)
        steps.append(step)
        weights.append(weight * both)
        # a normal off by slope_degrees changes the step by about angle / (focal cosine^2)
        slack = math.radians(options.slope_degrees) / focal / weight.sqrt().clamp_min(_GRAZING**2)
        widths.append(options.edge * log_range + slack)

    calm = _median(_median(given, mask), mask)
    sticking = ((given - calm) / (options.edge * log_range)).square()
    trust = 1 / (1 + sticking) if confidence is None else confidence.clamp(1e-3, 1) / (1 + sticking)
    data = mask * trust / (options.reach * max(height, width)) ** 2
    # the solver's unknowns outside the mask are tied to their value, they have no links
    data = torch.where(mask, data, torch.ones_like(data))

    current, judged = given, calm
    for _ in range(options.rounds):
        links = []
        for dim, step, weight, spread in zip((2, 1), steps, weights, widths, strict=True):
            miss = _second(judged, dim) - _first(judged, dim) - step
            links.append(weight / (1 + (miss / spread).square()).square())
        system = GridSystem.build(links[0], links[1], data)
        rhs = data * given
        for dim, step, link in zip((2, 1), steps, links, strict=True):
            push = link * step
            _second(rhs, dim).add_(push)
            _first(rhs, dim).sub_(push)
        current = solve(system, rhs, current, options.iterations)
        judged = current
    return torch.where(mask, torch.exp(current), depth.float()).to(depth.dtype)


def _first(x: Tensor, dim: int) -> Tensor:
    return x.narrow(dim, 0, x.shape[dim] - 1)


def _second(x: Tensor, dim: int) -> Tensor:
    return x.narrow(dim, 1, x.shape[dim] - 1)


def _expected_steps(normal: Tensor, rays: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Steps of ln depth between neighbours along dim of (B, H, W), and weights: cosine of incidence to the
    fourth.
    """
    ray_dim = dim if rays.ndim == 4 else dim - 1
    one, two = _first(rays, ray_dim), _second(rays, ray_dim)
    mean = F.normalize(_first(normal, dim) + _second(normal, dim), dim=-1)
    near = (mean * one).sum(-1)
    far = (mean * two).sum(-1)
    cosine = -(mean * F.normalize(one + two, dim=-1)).sum(-1)
    usable = (cosine > _GRAZING) & (near < 0) & (far < 0)
    ratio = torch.where(usable, near / torch.where(usable, far, torch.ones_like(far)), torch.ones_like(near))
    return torch.log(ratio.clamp(0.5, 2.0)), torch.where(usable, cosine, torch.zeros_like(cosine)).pow(4)


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


def _median(x: Tensor, mask: Tensor) -> Tensor:
    """Median of three along rows, then along columns; keeps edges, drops single pixels. Only inside the
    mask.
    """
    for dim in (2, 1):
        before = torch.cat([x.narrow(dim, 0, 1), _first(x, dim)], dim)
        after = torch.cat([_second(x, dim), x.narrow(dim, x.shape[dim] - 1, 1)], dim)
        known = torch.cat([mask.narrow(dim, 0, 1), _first(mask, dim)], dim) & torch.cat(
            [_second(mask, dim), mask.narrow(dim, mask.shape[dim] - 1, 1)], dim
        )
        low, high = torch.minimum(before, after), torch.maximum(before, after)
        x = torch.where(known & mask, torch.minimum(torch.maximum(x, low), high), x)
    return x
