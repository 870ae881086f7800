"""Weighted graph Laplacians on pixel grids, solved by conjugate gradients with a multigrid preconditioner.

The energy is sum of w (x_j - x_i)^2 over links between neighbours plus sum of d x_i^2 over pixels. Coarser
levels join 2 x 2 pixels and add up the links between the joined groups, so a cut in the fine grid stays a
cut in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

_SMOOTHING = 0.7  # damping of Jacobi
_OVERCORRECTION = (
    1.6  # joined groups move as steps, not ramps, so a coarse correction is too small by about this
)


@dataclass(frozen=True)
class GridSystem:
    """Matrix of the energy for pictures (B, H, W): across (B, H, W - 1), down (B, H - 1, W) links, data (B,
    H, W).
    """

    across: Tensor
    down: Tensor
    data: Tensor
    diagonal: Tensor

    @staticmethod
    def build(across: Tensor, down: Tensor, data: Tensor) -> GridSystem:
        diagonal = data.clone()
        diagonal[:, :, 1:] += across
        diagonal[:, :, :-1] += across
        diagonal[:, 1:] += down
        diagonal[:, :-1] += down
        return GridSystem(across, down, data, diagonal.clamp_min(1e-20))

    def apply(self, x: Tensor) -> Tensor:
        """Matrix times picture."""
        out = self.data * x
        flow = self.across * (x[:, :, 1:] - x[:, :, :-1])
        out[:, :, 1:] += flow
        out[:, :, :-1] -= flow
        flow = self.down * (x[:, 1:] - x[:, :-1])
        out[:, 1:] += flow
        out[:, :-1] -= flow
        return out

    def coarse(self) -> GridSystem:
        """The same energy for pictures that are constant on 2 x 2 groups (odd sizes: the last group is
        smaller).
        """
        height, width = self.data.shape[1:]

        def rows(x: Tensor) -> Tensor:
            x = F.pad(x, (0, 0, 0, x.shape[1] % 2))
            return x[:, 0::2] + x[:, 1::2]

        def cols(x: Tensor) -> Tensor:
            x = F.pad(x, (0, x.shape[2] % 2))
            return x[:, :, 0::2] + x[:, :, 1::2]

        across = rows(self.across[:, :, 1::2]) if width > 2 else self.across[:, : (height + 1) // 2, :0]
        down = cols(self.down[:, 1::2]) if height > 2 else self.down[:, :0, : (width + 1) // 2]
        return GridSystem.build(across, down, cols(rows(self.data)))


def _restrict(x: Tensor) -> Tensor:
    x = F.pad(x, (0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return x[:, 0::2, 0::2] + x[:, 0::2, 1::2] + x[:, 1::2, 0::2] + x[:, 1::2, 1::2]


def _prolong(x: Tensor, height: int, width: int) -> Tensor:
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]


def _cycle(levels: list[GridSystem], rhs: Tensor, level: int = 0) -> Tensor:
    """One symmetric V-cycle from a zero start."""
    system = levels[level]
    x = _SMOOTHING * rhs / system.diagonal
    if level + 1 == len(levels):
        for _ in range(20):
            x = x + _SMOOTHING * (rhs - system.apply(x)) / system.diagonal
        return x
    correction = _cycle(levels, _restrict(rhs - system.apply(x)), level + 1)
    x = x + _OVERCORRECTION * _prolong(correction, *rhs.shape[1:])
    return x + _SMOOTHING * (rhs - system.apply(x)) / system.diagonal


def solve(system: GridSystem, rhs: Tensor, start: Tensor, iterations: int, tolerance: float = 1e-5) -> Tensor:
    """x (B, H, W) with system x = rhs, from `start`; stops early when the preconditioned residual fell
    enough.
    """
    levels = [system]
    while min(levels[-1].data.shape[1:]) > 4 and len(levels) < 12:
        levels.append(levels[-1].coarse())
    x = start.clone()
    residual = rhs - system.apply(x)
    z = _cycle(levels, residual)
    direction = z
    energy = (residual * z).sum((1, 2), keepdim=True)
    first = energy.clone()
    for _ in range(iterations):
        image = system.apply(direction)
        step = energy / (direction * image).sum((1, 2), keepdim=True).clamp_min(1e-30)
        x = x + step * direction
        residual = residual - step * image
        z = _cycle(levels, residual)
        fresh = (residual * z).sum((1, 2), keepdim=True)
        if bool((fresh <= tolerance**2 * first).all()):
            break
        direction = z + (fresh / energy.clamp_min(1e-30)) * direction
        energy = fresh
    return x
