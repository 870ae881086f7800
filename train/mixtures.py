"""Which scenes are drawn how often: the layouts of `train.layouts`, and those that the second embedded model adds.

"first" is what the first model was taught, "second" is wider (furniture, plants, hills, the cameras a phone has), and
"unseen" is never trained on: it is for asking how far what was learned carries.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from train.furniture import FURNITURE, PLANTS, Assembly, lifted
from train.layouts import (
    LAYOUTS,
    Camera,
    Layout,
    Light,
    World,
    aimed_camera,
    clear_of,
    outdoor_world,
    sample_from,
    textured_box,
    uniform,
    walled_room,
    warm_light,
)
from train.primitives import Cylinder, HeightField, Plane, Primitive, pose
from train.textures import sample_texture


def phone_camera(rng: np.random.Generator, camera: Camera) -> Camera:
    """The same camera with one of a phone's lenses: main, ultra-wide or tele (fields of view of the longer side)."""
    lens = rng.random()
    fov = uniform(rng, 58, 78) if lens < 0.55 else uniform(rng, 95, 115) if lens < 0.7 else uniform(rng, 25, 55)
    return replace(camera, fov=fov)


def _some(rng: np.random.Generator, things: dict[str, tuple[Assembly, float]], x: float, z: float) -> list[Primitive]:
    assembly, size = things[str(rng.choice(list(things)))]
    return assembly(rng, x, z, uniform(rng, 0, 2 * np.pi), size * uniform(rng, 0.7, 1.3))


def _lamps(rng: np.random.Generator, height: float, deep: float) -> tuple[Light, ...]:
    return tuple(
        Light((uniform(rng, -1.5, 1.5), -height + 0.15, uniform(rng, -1, min(3.0, deep))), warm_light(rng, uniform(rng, 1.0, 3.8)))
        for _ in range(int(rng.integers(1, 4)))
    )


def _interior(rng: np.random.Generator, shapes: list[Primitive], lamps: tuple[Light, ...], far: float = 80.0) -> World:
    glow = uniform(rng, 0.12, 0.5)
    return World(tuple(shapes), lamps, (glow, glow, glow), far=far, exposure=uniform(rng, 0.7, 1.6), seed=int(rng.integers(1 << 30)))


def furnished(rng: np.random.Generator) -> tuple[World, Camera]:
    """A room with furniture: some along the walls, some in the middle."""
    camera = aimed_camera(rng, (0.7, 1.8), (-10, 28))
    shapes, (wide, height, deep), _ = walled_room(rng, camera)
    things: list[Primitive] = []
    for _ in range(int(rng.integers(3, 9))):
        away = uniform(rng, 1.3, max(1.6, deep + 1))
        things += _some(rng, FURNITURE, away * uniform(rng, -0.9, 0.9), away)
    shapes += clear_of(things, camera, 0.2)
    return _interior(rng, shapes, _lamps(rng, height, deep)), camera


def garden(rng: np.random.Generator) -> tuple[World, Camera]:
    """Flat ground with trees, bushes and stones, and sometimes a house or a fence."""
    camera = aimed_camera(rng, (0.8, 2.2), (-8, 20))
    shapes: list[Primitive] = [Plane(pose((0, 0, 0), uniform(rng, 0, 3)), sample_texture(rng, 5, 0.05))]
    things: list[Primitive] = []
    for _ in range(int(rng.integers(3, 9))):
        away = float(np.exp(uniform(rng, np.log(2.2), np.log(25))))
        things += _some(rng, PLANTS, away * uniform(rng, -0.8, 0.8), away)
    if rng.random() < 0.5:
        away, high = uniform(rng, 6, 25), uniform(rng, 1.5, 4)
        half = (uniform(rng, 2, 7), high, uniform(rng, 2, 5))
        things.append(textured_box(rng, (uniform(rng, -0.6, 0.6) * away, -high, away), half, float(rng.normal(0, 0.5)), plain=0.2))
    if rng.random() < 0.4:
        away, yaw = uniform(rng, 3, 15), float(rng.normal(0, 0.4))
        things.append(textured_box(rng, (0, -0.6, away), (12, uniform(rng, 0.3, 0.9), 0.06), yaw, plain=0.1))
    shapes += clear_of(things, camera, 0.4)
    return outdoor_world(rng, shapes), camera


def hills(rng: np.random.Generator) -> tuple[World, Camera]:
    """Rolling ground under the sky, with trees and stones on it."""
    ground = HeightField(uniform(rng, 0.3, 7), uniform(rng, 5, 25), int(rng.integers(10000)), sample_texture(rng, 5, 0.05))

    def level(x: float, z: float) -> float:
        return float(ground.height(torch.tensor([x]), torch.tensor([z])))

    camera = aimed_camera(rng, (1.0, 4.0), (-4, 22))
    camera = replace(camera, position=(0.0, camera.position[1] - level(0.0, 0.0), 0.0))
    things: list[Primitive] = []
    for _ in range(int(rng.integers(0, 7))):
        away = float(np.exp(uniform(rng, np.log(2.5), np.log(40))))
        x = away * uniform(rng, -0.8, 0.8)
        things += [lifted(part, level(x, away) - 0.05) for part in _some(rng, PLANTS, x, away)]
    return outdoor_world(rng, [ground, *clear_of(things, camera, 0.5)]), camera


def colonnade(rng: np.random.Generator) -> tuple[World, Camera]:
    """A hall between two rows of columns on plinths under beams, with steps at its end."""
    camera = aimed_camera(rng, (1.2, 2.0), (-8, 14))
    stone, wall = sample_texture(rng, 2, 0.3), sample_texture(rng, 4, 0.4)
    half, height, gap = uniform(rng, 1.4, 3.0), uniform(rng, 3.0, 5.5), uniform(rng, 1.8, 3.5)
    bend = float(rng.normal(0, 0.2))
    side, cross = float(np.cos(bend)), float(np.sin(bend))

    def place(x: float, y: float, z: float) -> tuple[float, float, float]:
        return side * x + cross * z, y, -cross * x + side * z

    def box(centre: tuple[float, float, float], size: tuple[float, float, float], texture=stone) -> Primitive:
        made = textured_box(rng, place(*centre), size, bend)
        return replace(made, texture=texture)

    end = uniform(rng, 8, 22)
    shapes: list[Primitive] = [Plane(pose((0, 0, 0), bend), sample_texture(rng, 2, 0.1))]
    shapes.append(replace(box((0, -height - 0.6, end / 2), (half + 2.5, 0.2, end), wall), casts_shadow=False))
    for sign in (-1, 1):
        shapes.append(box((sign * half, -height - 0.2, end / 2), (0.3, 0.25, end)))
        if rng.random() < 0.7:
            shapes.append(box((sign * (half + 2.2), -height / 2, end / 2), (0.15, height / 2, end), wall))
        z = uniform(rng, 1.5, 3.0)
        while z < end:
            radius = uniform(rng, 0.16, 0.28)
            shapes.append(box((sign * half, -0.15, z), (1.6 * radius, 0.15, 1.6 * radius)))
            shapes.append(Cylinder(pose(place(sign * half, -height / 2, z)), radius, height / 2, stone))
            z += gap
    for step in range(int(rng.integers(0, 6))):
        shapes.append(box((0, -0.08 - 0.16 * step, end - 1.2 + 0.35 * step), (half, 0.08 + 0.16 * step, 0.3)))
    shapes.append(box((0, -height / 2, end + 1.5), (half + 2.5, height / 2, 0.2), wall))
    return _interior(rng, shapes, _lamps(rng, height, end)), camera


def _by_phone(layout: Layout) -> Layout:
    def sample(rng: np.random.Generator) -> tuple[World, Camera]:
        world, camera = layout(rng)
        return world, phone_camera(rng, camera)

    return sample


Mixture = dict[str, tuple[Layout, float]]
MIXTURES: dict[str, Mixture] = {
    "first": LAYOUTS,
    "second": {
        "room": (_by_phone(LAYOUTS["room"][0]), 0.2),
        "clutter": (_by_phone(LAYOUTS["clutter"][0]), 0.14),
        "tabletop": (_by_phone(LAYOUTS["tabletop"][0]), 0.12),
        "street": (_by_phone(LAYOUTS["street"][0]), 0.1),
        "field": (_by_phone(LAYOUTS["field"][0]), 0.1),
        "furnished": (_by_phone(furnished), 0.2),
        "garden": (_by_phone(garden), 0.08),
        "hills": (_by_phone(hills), 0.06),
    },
    "unseen": {"colonnade": (_by_phone(colonnade), 1.0)},
}
"""Name -> layouts with their shares, which sum to one."""


def sample_mixture(rng: np.random.Generator, mixture: str = "first", layout: str | None = None) -> tuple[World, Camera]:
    """A random world and camera of the mixture, from one of its layouts by name or from all by their shares.

    Raises ValueError for an unknown name.
    """
    if mixture not in MIXTURES:
        raise ValueError(f"mixture {mixture!r} is unknown; choose one of {', '.join(MIXTURES)}")
    return sample_from(MIXTURES[mixture], rng, layout)
