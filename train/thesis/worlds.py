"""Worlds of the study: the layouts of `train.layouts`, with things close to the lens, from 0.1 to 80 metres."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from train.layouts import LAYOUTS, Camera, World, sample_layout
from train.primitives import Box, Cylinder, Primitive, Sphere, pose
from train.scenes import Scene, camera_rotation, render
from train.textures import sample_texture

DOMAINS: dict[str, tuple[str, ...]] = {"outdoor": ("street", "field"), "indoor": ("room", "clutter", "tabletop")}
"""What the tables are split by; a scene's domain is its number modulo their count."""

NEAREST, FARTHEST = 0.1, 80.0
"""Metres; every valid depth of the study lies between them."""

_MIN_VALID = 0.4
_MIN_RATIO = 1.5
_ATTEMPTS = 40
_CLOSE = {"outdoor": 0.8, "indoor": 0.4}
"""Probability of things close to the lens."""


def sample_world(rng: np.random.Generator, domain: str) -> tuple[World, Camera, str]:
    """A world, its camera and its layout's name. Some have one or two things 0.13 to 1.2 m before the lens."""
    names = DOMAINS[domain]
    layout = names[int(rng.integers(len(names)))]
    world, camera = sample_layout(rng, layout)
    close: list[Primitive] = []
    if rng.random() < _CLOSE[domain]:
        close = [_close(rng, camera) for _ in range(int(rng.integers(1, 3)))]
    return replace(world, primitives=(*world.primitives, *close), far=min(world.far, FARTHEST)), camera, layout


def _close(rng: np.random.Generator, camera: Camera) -> Primitive:
    """A thing of a hand's size: how large it looks tells how near it is."""
    away = float(np.exp(rng.uniform(np.log(0.18), np.log(1.2))))
    size = float(rng.uniform(0.045, 0.07))
    reach = np.tan(np.radians(camera.fov) / 2)
    x, y = (rng.uniform(-0.75, 0.75, 2) * reach * away).tolist()
    spot = camera_rotation(camera) @ torch.tensor([x, 0.75 * y, away]) + torch.tensor(camera.position)
    place = pose(tuple(spot.tolist()), *rng.uniform(0, 2 * np.pi, 3).tolist())
    texture = sample_texture(rng, 2 * size)
    kind = str(rng.choice(["box", "sphere", "cylinder"]))
    if kind == "box":
        half = torch.from_numpy(size * rng.uniform(0.4, 0.8, 3)).float()
        return Box(place, half, texture)
    if kind == "sphere":
        return Sphere(place, size, texture)
    return Cylinder(place, 0.5 * size, 0.8 * size, texture)


def usable(scene: Scene) -> bool:
    """Whether 40 % of the pixels are valid, none is nearer than 0.1 m, and there is more than one wall to see."""
    valid = scene.depth[scene.mask]
    if valid.numel() < _MIN_VALID * scene.mask.numel():
        return False
    nearest, farthest = float(valid.min()), float(valid.max())
    return nearest >= NEAREST and farthest >= _MIN_RATIO * nearest


def draw_scene(seed: tuple[int, ...], domain: str, height: int, width: int) -> tuple[World, Camera, str, Scene]:
    """The usable world of this seed, and its picture. RuntimeError when none is found."""
    rng = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        world, camera, layout = sample_world(rng, domain)
        scene = render(world, camera, height, width)
        if usable(scene):
            return world, camera, layout, scene
    raise RuntimeError(f"thesis scene {seed}: no usable world in {_ATTEMPTS} draws")


__all__ = ["DOMAINS", "FARTHEST", "LAYOUTS", "NEAREST", "draw_scene", "sample_world", "usable"]
