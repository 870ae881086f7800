"""The stated error of a camera against the error that is made, over many drawings of patches whose errors are of one
kind, so that only one of the terms knows of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fe2e_core.camera_error import camera_error
from fe2e_core.camera_fit import CameraState, Unknowns, refine
from fe2e_core.patches import PlanePatches

FOCAL, HALF, ASPECT = 0.9, 0.8, 0.75
CENTRE = torch.tensor([0.5, 0.5 * ASPECT], dtype=torch.float64)
FACING = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
SIDE, BLOCKS = 24, 6  # patches and blocks along each side


def boards(frames: int, spoil: Callable[[Tensor, Tensor, Tensor], Tensor]) -> PlanePatches:
    """Six by six boards, each a block: every third is slanted, each to another side, the others face the camera, and
    all frames show the same. `spoil` gets true normals (n, 3), blocks (n,) and places (n, 2), and returns the normals
    of a frame.
    """
    row, col = (x.flatten() for x in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    down, across = row * BLOCKS // SIDE, col * BLOCKS // SIDE
    block = down * BLOCKS + across
    centre = torch.stack([(col + 0.5) / SIDE, (row + 0.5) / SIDE * ASPECT], -1).double()
    turn = 2.4 * block.double()
    slanted = normalize(torch.stack([0.6 * turn.cos(), 0.6 * turn.sin(), -torch.ones_like(turn)], -1), dim=-1)
    normal = torch.where(((down + across) % 3 == 0)[:, None], slanted, FACING)
    ones = torch.ones(len(row), dtype=torch.float64)
    ray = torch.cat([(centre - CENTRE) / FOCAL, ones[:, None]], -1)
    return PlanePatches.cat(
        [
            PlanePatches(
                frame=torch.full_like(block, t),
                block=block,
                centre=centre,
                label=0 * ones,
                slope=-normal[:, :2] / (normal * ray).sum(-1, keepdim=True) / (FOCAL * HALF),
                slope_error=1e-8 * torch.eye(2, dtype=torch.float64).expand(len(row), 2, 2),
                normal=normalize(spoil(normal, block, centre), dim=-1),
                weight=ones,
                pixels=64 * ones,
                roughness=1e-3 * ones,
            )
            for t in range(frames)
        ]
    )


def misses(patches: PlanePatches, frames: int, unknowns: Unknowns) -> Tensor:
    """Errors of ln focal, if unknown, and of each frame's ln range, in stated standard errors."""
    start = CameraState(FOCAL, CENTRE, torch.full((frames,), HALF, dtype=torch.float64))
    fit = refine(patches, start, unknowns)
    error = camera_error(patches, fit, unknowns, ASPECT)
    found = (fit.state.half / HALF).log() / error.range
    if not unknowns.focal:
        return found
    return torch.cat([found, found.new_tensor([math.log(fit.state.focal / FOCAL) / error.focal])])


def size(drawings: list[Tensor]) -> float:
    return float(torch.cat(drawings).square().mean().sqrt())


def test_errors_that_blocks_share_are_stated():
    """Each board's normals are drawn to or from the camera by their own amount. Few boards tell of the camera, and
    over the whole picture, which is mostly exact, little of it is smooth."""
    drawings = []
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        pull = 0.1 * torch.randn(BLOCKS**2, generator=generator, dtype=torch.float64)

        def spoil(normal, block, _, pull=pull, generator=generator):
            noise = 0.03 * torch.randn(normal.shape, generator=generator, dtype=torch.float64)
            return normal + pull[block][:, None] * (FACING - (normal @ FACING)[:, None] * normal) + noise

        drawings.append(misses(boards(1, spoil), 1, Unknowns()))
    assert 0.6 < size(drawings) < 1.5, size(drawings)


def test_errors_that_each_frame_has_of_its_own_are_stated_for_its_range():
    """Normals bent over the whole picture, in every frame in another way: the mean of the frames shows little of it."""
    frames, drawings = 12, []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)

        def spoil(normal, _, centre, generator=generator):
            x, y = 2 * centre[:, 0] - 1, 2 * centre[:, 1] / ASPECT - 1
            smooth = torch.stack([torch.ones_like(x), math.sqrt(3) * x, math.sqrt(3) * y], -1)
            bend = smooth @ (0.03 * torch.randn(3, 3, generator=generator, dtype=torch.float64))
            return normal + bend - (bend * normal).sum(-1, keepdim=True) * normal

        drawings.append(misses(boards(frames, spoil), frames, Unknowns(focal=False)))
    assert 0.6 < size(drawings) < 1.5, size(drawings)
