"""What stands where: random worlds and cameras. World axes: x right, y down, z forward; the floor is y = 0.

A layout is a function of a random generator that returns a `World` and a `Camera`; a new kind of scene is one more
function in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from train.primitives import Box, Cylinder, Plane, Primitive, Sphere, pose
from train.textures import sample_colour, sample_texture

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """`position` (metres) of a lamp, or with `sun` the unit direction towards it. `colour` is linear intensity."""

    position: tuple[float, float, float]
    colour: Colour
    sun: bool = False


@dataclass(frozen=True)
class Camera:
    """Pinhole camera. `fov` is the field of view of the longer image side in degrees; angles in radians.

    Positive `pitch` looks down, positive `roll` turns the camera clockwise.
    """

    position: tuple[float, float, float]
    fov: float = 60.0
    pitch: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class World:
    """Shapes, lights and sky. `far` in metres: what is hit beyond it, or not at all, is sky and not valid."""

    primitives: tuple[Primitive, ...]
    lights: tuple[Light, ...]
    ambient: Colour = (0.3, 0.3, 0.3)
    zenith: Colour = (0.3, 0.5, 0.9)
    horizon: Colour = (0.8, 0.85, 0.95)
    cloudiness: float = 0.0
    haze: float = 0.0
    far: float = 80.0
    exposure: float = 1.0
    seed: int = 0


Layout = Callable[[np.random.Generator], tuple[World, Camera]]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def warm_light(rng: np.random.Generator, strength: float) -> Colour:
    tint = 1 + np.array([1, 0, -1]) * rng.uniform(-0.15, 0.25)
    return tuple(float(v) for v in strength * tint)


def aimed_camera(rng: np.random.Generator, height: tuple[float, float], pitch: tuple[float, float]) -> Camera:
    return Camera(
        position=(0.0, -uniform(rng, *height), 0.0),
        fov=uniform(rng, 40, 90),
        pitch=float(np.radians(uniform(rng, *pitch))),
        roll=float(np.radians(rng.normal(0, 4))),
    )


def textured_box(rng: np.random.Generator, centre: tuple[float, float, float], half: tuple[float, float, float],
         yaw: float, pitch: float = 0, roll: float = 0, plain: float = 0.35) -> Box:
    texture = sample_texture(rng, 2 * max(half), plain)
    return Box(pose(centre, yaw, pitch, roll), torch.tensor(half, dtype=torch.float32), texture)


def standing(rng: np.random.Generator, x: float, z: float, size: float) -> list[Primitive]:
    """One object of about `size` metres standing on the floor at (x, z)."""
    kind = rng.choice(["box", "box", "stack", "cylinder", "sphere", "table", "lying"])
    yaw = uniform(rng, 0, 2 * np.pi)
    a, b, c = (size * rng.uniform(0.3, 1.0, 3) / 2).tolist()
    if kind == "box":
        return [textured_box(rng, (x, -b, z), (a, b, c), yaw)]
    if kind == "stack":
        low = textured_box(rng, (x, -b, z), (a, b, c), yaw)
        top = b * uniform(rng, 0.3, 0.9)
        return [low, textured_box(rng, (x, -2 * b - top, z), (0.6 * a, top, 0.6 * c), yaw + uniform(rng, -0.5, 0.5))]
    if kind == "cylinder":
        return [Cylinder(pose((x, -b, z), yaw), 0.7 * a, b, sample_texture(rng, size))]
    if kind == "sphere":
        return [Sphere(pose((x, -a, z), yaw, uniform(rng, 0, 3)), a, sample_texture(rng, size))]
    if kind == "lying":
        tilt = pose((x, -0.6 * a, z), yaw, np.pi / 2)
        return [Cylinder(tilt, 0.6 * a, max(b, c), sample_texture(rng, size))]
    slab = 0.05 * size
    wide, deep, height = a + 0.1 * size, c + 0.1 * size, 2 * b
    parts: list[Primitive] = [textured_box(rng, (x, -height - slab, z), (wide, slab, deep), yaw)]
    leg = sample_texture(rng, size, 0.8)
    turn = pose((0, 0, 0), yaw).rotation
    for sx in (-0.85, 0.85):
        for sz in (-0.85, 0.85):
            foot = turn @ torch.tensor([sx * wide, 0.0, sz * deep])
            place = pose((x + float(foot[0]), -height / 2, z + float(foot[2])), yaw)
            parts.append(Cylinder(place, 0.04 * size, height / 2, leg))
    if rng.random() < 0.6:
        r = 0.15 * size
        parts.append(Sphere(pose((x, -height - 2 * slab - r, z), yaw), r, sample_texture(rng, r)))
    return parts


def floating(rng: np.random.Generator, centre: tuple[float, float, float], size: float) -> Primitive:
    """One object in any orientation."""
    yaw, pitch, roll = (rng.uniform(0, 2 * np.pi, 3)).tolist()
    a, b, c = (size * rng.uniform(0.25, 1.0, 3) / 2).tolist()
    kind = rng.choice(["box", "box", "sphere", "cylinder"])
    if kind == "box":
        return textured_box(rng, centre, (a, b, c), yaw, pitch, roll)
    if kind == "sphere":
        return Sphere(pose(centre, yaw, pitch, roll), a, sample_texture(rng, size))
    return Cylinder(pose(centre, yaw, pitch, roll), 0.7 * a, b, sample_texture(rng, size))


def clear_of(primitives: list[Primitive], camera: Camera, distance: float) -> list[Primitive]:
    """Without what stands in or right before the lens."""
    eye = np.array(camera.position)
    return [shape for shape in primitives if shape.clearance(eye) > distance]


def walled_room(rng: np.random.Generator, camera: Camera) -> tuple[list[Primitive], tuple[float, float, float], float]:
    """A room around the camera: floor, ceiling and four walls with textures of their own."""
    height = max(uniform(rng, 2.3, 4.5), -camera.position[1] + 0.4)
    wide, deep = uniform(rng, 1.4, 5) , uniform(rng, 2, 7)
    yaw = float(rng.normal(0, 0.5)) if rng.random() < 0.7 else uniform(rng, -np.pi, np.pi)
    # The camera stands somewhere in the back half of the room, never in a wall.
    shift = np.array([uniform(rng, -0.7, 0.7) * wide, 0.0, uniform(rng, -0.1, 0.8) * deep])
    turn = pose((0, 0, 0), yaw).rotation.numpy()
    offset = turn @ shift
    thick = 0.05
    inside: list[Primitive] = []
    wall = sample_texture(rng, 4, 0.45)
    panels = [
        ((0, thick, 0), (wide, thick, deep), sample_texture(rng, 3, 0.2)),
        ((0, -height - thick, 0), (wide, thick, deep), sample_texture(rng, 4, 0.75)),
        ((-wide - thick, -height / 2, 0), (thick, height / 2, deep), wall),
        ((wide + thick, -height / 2, 0), (thick, height / 2, deep), wall),
        ((0, -height / 2, deep + thick), (wide, height / 2, thick),
         wall if rng.random() < 0.6 else sample_texture(rng, 4, 0.4)),
        ((0, -height / 2, -deep - thick), (wide, height / 2, thick), wall),
    ]
    for centre, half, texture in panels:
        spot = turn @ np.array(centre) + offset
        place = pose((float(spot[0]), float(spot[1]), float(spot[2])), yaw)
        inside.append(Box(place, torch.tensor(half, dtype=torch.float32), texture, casts_shadow=False))
    for _ in range(int(rng.integers(0, 4))):  # pictures, doors, windows: thin boxes on the walls
        side = int(rng.integers(0, 4))
        flat = (uniform(rng, 0.3, 1.0), uniform(rng, 0.3, 1.0), 0.04)
        high = -uniform(rng, flat[1], max(flat[1] + 0.1, height - flat[1]))
        centre, extra = [
            ((uniform(rng, -1, 1) * (wide - 0.5), high, deep), 0.0),
            ((uniform(rng, -1, 1) * (wide - 0.5), high, -deep), 0.0),
            ((wide, high, uniform(rng, -1, 1) * (deep - 0.5)), np.pi / 2),
            ((-wide, high, uniform(rng, -1, 1) * (deep - 0.5)), np.pi / 2),
        ][side]
        spot = turn @ np.array(centre) + offset
        inside.append(textured_box(rng, (float(spot[0]), float(spot[1]), float(spot[2])), flat, yaw + extra, plain=0.2))
    return inside, (wide, height, deep), yaw


def room(rng: np.random.Generator) -> tuple[World, Camera]:
    """An interior with furniture on the floor and lamps under the ceiling."""
    camera = aimed_camera(rng, (0.8, 1.9), (-10, 25))
    shapes, (wide, height, deep), _ = walled_room(rng, camera)
    things: list[Primitive] = []
    for _ in range(int(rng.integers(2, 9))):
        away = uniform(rng, 1.2, max(1.5, deep + 1))
        x = away * uniform(rng, -0.9, 0.9)
        things += standing(rng, x, away, uniform(rng, 0.4, 1.7))
    shapes += clear_of(things, camera, 0.25)
    lamps = tuple(
        Light((uniform(rng, -1.2, 1.2), -height + 0.15, uniform(rng, -0.5, min(3.0, deep))),
              warm_light(rng, uniform(rng, 1.0, 3.5)))
        for _ in range(int(rng.integers(1, 4)))
    )
    glow = uniform(rng, 0.12, 0.5)
    return World(tuple(shapes), lamps, (glow, glow, glow), exposure=uniform(rng, 0.7, 1.6),
                 seed=int(rng.integers(1 << 30))), camera


def clutter(rng: np.random.Generator) -> tuple[World, Camera]:
    """A room with objects in any orientation, also in the air."""
    camera = aimed_camera(rng, (0.8, 2.2), (-25, 30))
    shapes, (wide, height, deep), _ = walled_room(rng, camera)
    things: list[Primitive] = []
    for _ in range(int(rng.integers(3, 10))):
        away = uniform(rng, 1.2, 5.5)
        centre = (away * uniform(rng, -0.8, 0.8), camera.position[1] + away * uniform(rng, -0.5, 0.6), away)
        things.append(floating(rng, centre, uniform(rng, 0.3, 1.6)))
    shapes += clear_of(things, camera, 0.3)
    lamps = tuple(
        Light((uniform(rng, -1.5, 1.5), -height + 0.2, uniform(rng, -1, 2.5)), warm_light(rng, uniform(rng, 1.0, 4.0)))
        for _ in range(int(rng.integers(1, 4)))
    )
    glow = uniform(rng, 0.12, 0.5)
    return World(tuple(shapes), lamps, (glow, glow, glow), exposure=uniform(rng, 0.7, 1.6),
                 seed=int(rng.integers(1 << 30))), camera


def tabletop(rng: np.random.Generator) -> tuple[World, Camera]:
    """Small things on a surface, seen from above and near, with a wall or nothing but the surface behind."""
    camera = aimed_camera(rng, (0.25, 0.9), (15, 60))
    shapes: list[Primitive] = [Plane(pose((0, 0, 0), uniform(rng, 0, 3)), sample_texture(rng, 0.6, 0.3))]
    back = uniform(rng, 0.9, 2.5)
    shapes.append(textured_box(rng, (0, 0, back + 0.5), (6, 6, 0.5), float(rng.normal(0, 0.25)), plain=0.5))
    things: list[Primitive] = []
    for _ in range(int(rng.integers(2, 9))):
        away = uniform(rng, 0.25, max(0.4, back - 0.1))
        things += standing(rng, away * uniform(rng, -0.7, 0.7), away, uniform(rng, 0.1, 0.45))
    shapes += clear_of(things, camera, 0.08)
    lamps = tuple(
        Light((uniform(rng, -1.5, 1.5), -uniform(rng, 0.9, 2.5), uniform(rng, -0.5, 1.0)),
              warm_light(rng, uniform(rng, 0.6, 1.8)))
        for _ in range(int(rng.integers(1, 3)))
    )
    glow = uniform(rng, 0.2, 0.6)
    return World(tuple(shapes), lamps, (glow, glow, glow), exposure=uniform(rng, 0.7, 1.5), far=20,
                 seed=int(rng.integers(1 << 30))), camera


def outdoor_world(rng: np.random.Generator, shapes: list[Primitive]) -> World:
    up = uniform(rng, 0.25, 1.2)
    turn = uniform(rng, 0, 2 * np.pi)
    sun = (float(np.cos(up) * np.cos(turn)), -float(np.sin(up)), float(np.cos(up) * np.sin(turn)))
    blue = uniform(rng, 0.25, 0.6)
    return World(
        tuple(shapes),
        (Light(sun, warm_light(rng, uniform(rng, 0.3, 1.3)), sun=True),),
        ambient=(0.9 * blue, blue, 1.15 * blue),
        zenith=(uniform(rng, 0.1, 0.5), uniform(rng, 0.3, 0.6), uniform(rng, 0.5, 1.0)),
        horizon=warm_light(rng, uniform(rng, 0.6, 1.0)),
        cloudiness=uniform(rng, 0, 1),
        haze=uniform(rng, 0, 0.02) if rng.random() < 0.5 else 0.0,
        exposure=uniform(rng, 0.8, 1.5),
        seed=int(rng.integers(1 << 30)),
    )


def street(rng: np.random.Generator) -> tuple[World, Camera]:
    """A road between rows of buildings, with cars, poles and trees of a kind."""
    camera = aimed_camera(rng, (1.2, 2.5), (-8, 12))
    bend = float(rng.normal(0, 0.25))
    side, cross = np.cos(bend), np.sin(bend)

    def place(x: float, z: float) -> tuple[float, float]:
        return float(side * x + cross * z), float(-cross * x + side * z)

    road = uniform(rng, 3, 8)
    shapes: list[Primitive] = [Plane(pose((0, 0, 0), bend), sample_texture(rng, 12, 0.4))]
    for sign in (-1, 1):
        if rng.random() < 0.15:
            continue
        along = uniform(rng, -4, 4)
        while along < 60:
            long, high, deep = uniform(rng, 2, 8), uniform(rng, 1.5, 9), uniform(rng, 2, 6)
            x, z = place(sign * (road + deep + uniform(rng, 0, 1.5)), along + long)
            shapes.append(textured_box(rng, (x, -high, z), (deep, high, long), bend, plain=0.15))
            along += 2 * long + (uniform(rng, 0, 6) if rng.random() < 0.5 else 0)
    things: list[Primitive] = []
    for _ in range(int(rng.integers(0, 6))):
        x, z = place(uniform(rng, -1, 1) * road * 0.8, uniform(rng, 4, 35))
        body = (0.9, 0.45, uniform(rng, 1.8, 2.4))
        things.append(textured_box(rng, (x, -0.7, z), body, bend, plain=0.8))
        things.append(textured_box(rng, (x, -1.4, z), (0.75, 0.3, 1.2), bend, plain=0.8))
    for _ in range(int(rng.integers(0, 8))):
        x, z = place(float(rng.choice([-1, 1])) * road * 0.92, uniform(rng, 3, 40))
        high = uniform(rng, 1, 3)
        things.append(Cylinder(pose((x, -high, z)), uniform(rng, 0.06, 0.25), high, sample_texture(rng, 2)))
        if rng.random() < 0.5:
            r = uniform(rng, 0.6, 1.6)
            things.append(Sphere(pose((x, -2 * high - 0.6 * r, z)), r, sample_texture(rng, 1.5, 0.05)))
    shapes += clear_of(things, camera, 0.5)
    return outdoor_world(rng, shapes), camera


def field(rng: np.random.Generator) -> tuple[World, Camera]:
    """Open ground with scattered objects of all sizes."""
    camera = aimed_camera(rng, (0.8, 3.5), (-5, 25))
    ground = pose((0, 0, 0), uniform(rng, 0, 3), float(rng.normal(0, 0.05)))
    shapes: list[Primitive] = [Plane(ground, sample_texture(rng, 6, 0.1))]
    things: list[Primitive] = []
    for _ in range(int(rng.integers(3, 14))):
        away = float(np.exp(uniform(rng, np.log(2.5), np.log(40))))
        x = away * uniform(rng, -0.8, 0.8)
        things += standing(rng, x, away, uniform(rng, 0.5, 2.0) * (1 + away / 12))
    shapes += clear_of(things, camera, 0.4)
    return outdoor_world(rng, shapes), camera


LAYOUTS: dict[str, tuple[Layout, float]] = {
    "room": (room, 0.4),
    "clutter": (clutter, 0.2),
    "tabletop": (tabletop, 0.12),
    "street": (street, 0.14),
    "field": (field, 0.14),
}
"""Name -> (sampler, share of the mixture). Shares sum to one."""


def sample_from(
    layouts: dict[str, tuple[Layout, float]], rng: np.random.Generator, layout: str | None = None
) -> tuple[World, Camera]:
    """A random world and camera, from the named one of `layouts` or from all by their shares. ValueError for an unknown name."""
    if layout is None:
        names = list(layouts)
        layout = str(rng.choice(names, p=[layouts[name][1] for name in names]))
    if layout not in layouts:
        raise ValueError(f"layout {layout!r} is unknown; choose one of {', '.join(layouts)}")
    return layouts[layout][0](rng)


def sample_layout(rng: np.random.Generator, layout: str | None = None) -> tuple[World, Camera]:
    """`sample_from` the layouts of this file."""
    return sample_from(LAYOUTS, rng, layout)


__all__ = ["LAYOUTS", "Camera", "Layout", "Light", "World", "sample_colour", "sample_from", "sample_layout"]
