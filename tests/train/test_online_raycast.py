"""The batched ray-caster against the one that renders world by world."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.mixtures import MIXTURES, sample_mixture
from train.online.packing import MAX_SHAPES, fits, pack_worlds
from train.online.raycast import RayCaster
from train.scenes import render

SIZE = (36, 48)
KINDS = [("second", name) for name in MIXTURES["second"]] + [("unseen", "colonnade")]


def worlds_of(mixture: str, layout: str, count: int = 3):
    drawn, seed = [], 0
    while len(drawn) < count:
        world, camera = sample_mixture(np.random.default_rng([7, seed]), mixture, layout)
        seed += 1
        if fits(world):
            drawn.append((world, camera))
    return drawn


@pytest.mark.parametrize(("mixture", "layout"), KINDS)
def test_batched_scenes_are_the_scenes_of_the_plain_ray_caster(mixture: str, layout: str) -> None:
    drawn = worlds_of(mixture, layout)
    found = RayCaster(torch.device("cpu"))(pack_worlds(drawn), *SIZE)
    for number, (world, camera) in enumerate(drawn):
        scene = render(world, camera, *SIZE)
        # A pixel whose ray grazes an edge may fall to either side in float32.
        agree = found.valid[number] == scene.mask
        near = (found.depth[number] / scene.depth.clamp_min(1e-3) - 1).abs() < 1e-3
        same = agree & (near | ~scene.mask)
        assert same.float().mean() > 0.99
        angle = (found.normal[number].permute(1, 2, 0) * scene.normal).sum(-1)
        assert (angle[same] > 0.999).float().mean() > 0.995
        colour = (found.image[number].permute(1, 2, 0) - scene.image).abs().amax(-1)
        assert (colour[same] < 0.02).float().mean() > 0.98
        assert colour[same].mean() < 4e-3


def test_a_window_is_a_crop_of_the_larger_picture() -> None:
    packed = pack_worlds(worlds_of("second", "room", 2))
    cast = RayCaster(torch.device("cpu"))
    large = cast(packed, 4 * SIZE[0], 4 * SIZE[1])
    window = torch.tensor([[4.0, -1.0, 1.0], [4.0, 1.0, -1.0]])
    found = cast(packed, *SIZE, window)
    crops = large.depth[0, -SIZE[0] :, : SIZE[1]], large.depth[1, : SIZE[0], -SIZE[1] :]
    for number, crop in enumerate(crops):
        assert ((found.depth[number] / crop.clamp_min(1e-3) - 1).abs() < 1e-3).float().mean() > 0.99


def test_a_world_that_is_too_large_is_refused() -> None:
    (world, camera), = worlds_of("second", "room", 1)
    from dataclasses import replace

    crowded = replace(world, primitives=world.primitives * MAX_SHAPES)
    assert not fits(crowded)
    with pytest.raises(ValueError, match="at most 64"):
        pack_worlds([(crowded, camera)])
