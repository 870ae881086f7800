"""Assemblies of primitives: furniture and plants. Each returns the parts of one thing standing at (x, z) on the floor y = 0,
turned by `yaw`, about `size` metres large. A new thing is one more function in `FURNITURE` or `PLANTS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from train.layouts import uniform
from train.primitives import Box, Cylinder, Ellipsoid, Primitive, Sphere, pose
from train.textures import Texture, sample_texture

Assembly = Callable[[np.random.Generator, float, float, float, float], list[Primitive]]
"""(rng, x, z, yaw, size) -> parts."""

P = TypeVar("P", Box, Cylinder, Ellipsoid, Sphere)


class _Place:
    """Puts parts given in the thing's own axes (x right, y down, z back) into the world."""

    def __init__(self, x: float, z: float, yaw: float):
        self.x, self.z, self.yaw = x, z, yaw
        self.turn = pose((0, 0, 0), yaw).rotation

    def at(self, x: float, y: float, z: float, pitch: float = 0, roll: float = 0, turn: float = 0):
        spot = self.turn @ torch.tensor([x, 0.0, z])
        return pose((self.x + float(spot[0]), y, self.z + float(spot[2])), self.yaw + turn, pitch, roll)

    def box(self, x: float, y: float, z: float, half: tuple[float, float, float], texture: Texture, **turns: float) -> Box:
        return Box(self.at(x, y, z, **turns), torch.tensor(half, dtype=torch.float32), texture)

    def rod(self, x: float, y: float, z: float, radius: float, half: float, texture: Texture, **turns: float) -> Cylinder:
        return Cylinder(self.at(x, y, z, **turns), radius, half, texture)

    def blob(self, x: float, y: float, z: float, radii: tuple[float, float, float], texture: Texture, **turns: float):
        return Ellipsoid(self.at(x, y, z, **turns), torch.tensor(radii, dtype=torch.float32), texture)


def _legs(place: _Place, wide: float, deep: float, height: float, thick: float, texture: Texture) -> list[Primitive]:
    return [
        place.rod(sx * wide, -height / 2, sz * deep, thick, height / 2, texture) for sx in (-1, 1) for sz in (-1, 1)
    ]


def chair(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, wood, cloth = _Place(x, z, yaw), sample_texture(rng, size, 0.6), sample_texture(rng, size, 0.4)
    half, seat, back = 0.26 * size, 0.5 * size, uniform(rng, 0.3, 0.55) * size
    return [
        *_legs(place, 0.85 * half, 0.85 * half, seat, 0.03 * size, wood),
        place.box(0, -seat - 0.03 * size, 0, (half, 0.04 * size, half), cloth),
        place.box(0, -seat - back, half, (half, back, 0.03 * size), cloth if rng.random() < 0.5 else wood,
                  pitch=uniform(rng, -0.2, 0.05)),
    ]


def shelf(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, wood = _Place(x, z, yaw), sample_texture(rng, size, 0.5)
    wide, high, deep, thick = 0.45 * size, 0.9 * size, 0.16 * size, 0.02 * size
    parts: list[Primitive] = [place.box(side * wide, -high, 0, (thick, high, deep), wood) for side in (-1, 1)]
    parts.append(place.box(0, -high, deep, (wide, high, 0.5 * thick), wood))
    boards = int(rng.integers(3, 6))
    for board in range(boards):
        level = -2 * high * (board + 0.05) / boards
        parts.append(place.box(0, level, 0, (wide, thick, deep), wood))
        if rng.random() < 0.7:  # what stands on it
            half = (uniform(rng, 0.05, 0.35) * wide, uniform(rng, 0.2, 0.7) * high / boards, 0.6 * deep)
            parts.append(place.box(uniform(rng, -0.6, 0.6) * wide, level - thick - half[1], 0, half, sample_texture(rng, half[1], 0.3)))
    return parts


def sofa(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, cloth = _Place(x, z, yaw), sample_texture(rng, 0.7 * size, 0.5)
    wide, deep, seat, back = 0.5 * size * uniform(rng, 0.7, 1.4), 0.27 * size, 0.13 * size, 0.24 * size
    parts: list[Primitive] = [
        place.box(0, -seat, 0, (wide, seat, deep), cloth),
        place.box(0, -2 * seat - 0.5 * back, 0.8 * deep, (wide, 0.7 * back, 0.22 * deep), cloth),
    ]
    arm = 0.08 * size
    parts += [place.box(side * (wide + arm), -1.4 * seat, 0, (arm, 1.4 * seat, deep), cloth) for side in (-1, 1)]
    for _ in range(int(rng.integers(0, 4))):
        cushion = sample_texture(rng, 0.3 * size, 0.3)
        parts.append(place.blob(uniform(rng, -0.8, 0.8) * wide, -2.6 * seat, 0.4 * deep,
                                (0.13 * size, 0.12 * size, 0.06 * size), cushion, pitch=-0.4, turn=uniform(rng, -0.5, 0.5)))
    return parts


def bed(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, wood, sheet = _Place(x, z, yaw), sample_texture(rng, size, 0.5), sample_texture(rng, size, 0.5)
    wide, long, high = uniform(rng, 0.3, 0.55) * size, 0.65 * size, 0.13 * size
    parts: list[Primitive] = [
        place.box(0, -high, 0, (wide, high, long), wood),
        place.box(0, -2.5 * high, 0, (0.96 * wide, 0.5 * high, 0.97 * long), sheet),
        place.box(0, -0.35 * size, long, (wide, 0.35 * size, 0.04 * size), wood),
    ]
    for side in (-0.5, 0.5):
        parts.append(place.blob(side * wide, -3.2 * high, 0.75 * long, (0.4 * wide, 0.07 * size, 0.13 * size), sample_texture(rng, size, 0.7)))
    return parts


def cabinet(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, wood, metal = _Place(x, z, yaw), sample_texture(rng, size, 0.4), sample_texture(rng, size, 0.9)
    wide, high, deep = uniform(rng, 0.25, 0.55) * size, uniform(rng, 0.25, 0.9) * size, 0.22 * size
    parts: list[Primitive] = [place.box(0, -high, 0, (wide, high, deep), wood)]
    doors = int(rng.integers(1, 4))
    for door in range(doors):
        middle = (2 * (door + 0.5) / doors - 1) * wide
        parts.append(place.box(middle, -high, -deep, (0.9 * wide / doors, 0.92 * high, 0.02 * size), wood if rng.random() < 0.6 else metal))
        parts.append(place.rod(middle + 0.6 * wide / doors, -high, -deep - 0.03 * size, 0.012 * size, 0.08 * size, metal))
    return parts


def lamp(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, metal, shade = _Place(x, z, yaw), sample_texture(rng, size, 0.9), sample_texture(rng, 0.4 * size, 0.7)
    high = uniform(rng, 0.6, 1.0) * size
    return [
        place.rod(0, -0.02 * size, 0, 0.16 * size, 0.02 * size, metal),
        place.rod(0, -high / 2, 0, 0.02 * size, high / 2, metal),
        place.rod(0, -high, 0, uniform(rng, 0.12, 0.22) * size, uniform(rng, 0.08, 0.16) * size, shade),
    ]


def laid_table(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, wood = _Place(x, z, yaw), sample_texture(rng, size, 0.4)
    wide, deep, high = uniform(rng, 0.35, 0.6) * size, uniform(rng, 0.25, 0.4) * size, uniform(rng, 0.35, 0.55) * size
    parts = [place.box(0, -high, 0, (wide, 0.03 * size, deep), wood)]
    parts += _legs(place, 0.88 * wide, 0.85 * deep, high, 0.035 * size, wood)
    top = -high - 0.03 * size
    for _ in range(int(rng.integers(1, 5))):
        r, at_x, at_z = uniform(rng, 0.03, 0.1) * size, uniform(rng, -0.8, 0.8) * wide, uniform(rng, -0.7, 0.7) * deep
        texture, kind = sample_texture(rng, 2 * r, 0.4), int(rng.integers(3))
        if kind == 0:
            parts.append(place.rod(at_x, top - 1.5 * r, at_z, 0.6 * r, 1.5 * r, texture))
        elif kind == 1:
            parts.append(place.blob(at_x, top - 0.7 * r, at_z, (r, 0.7 * r, r), texture))
        else:
            parts.append(place.box(at_x, top - 0.5 * r, at_z, (r, 0.5 * r, 0.7 * r), texture, turn=uniform(rng, 0, 3)))
    return parts


def _leaves(rng: np.random.Generator, size: float) -> Texture:
    """Mottled, and mostly green."""
    texture = sample_texture(rng, 0.4 * size, 0.0)
    if rng.random() < 0.75:
        green = np.array([0.25, 0.55, 0.12]) * rng.uniform(0.3, 1.1) * np.exp(rng.normal(0, 0.2, 3))
        low, high = tuple(map(float, 0.45 * green)), tuple(map(float, np.minimum(green, 1)))
        texture = replace(texture, pattern=str(rng.choice(["speckle", "noise"])), low=low, high=high, grain=0.4)
    return texture


def tree(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, leaves = _Place(x, z, yaw), _leaves(rng, 0.5 * size)
    high = uniform(rng, 0.3, 0.55) * size
    parts: list[Primitive] = [place.rod(0, -high, 0, uniform(rng, 0.02, 0.05) * size, high, sample_texture(rng, 0.2 * size, 0.3))]
    if rng.random() < 0.3:  # a conifer: flat layers, narrower upwards
        for level in range(4):
            wide = (0.3 - 0.06 * level) * size
            parts.append(place.blob(0, -0.5 * high - 0.28 * level * size, 0, (wide, 0.16 * size, wide), leaves))
        return parts
    for _ in range(int(rng.integers(3, 8))):
        r = uniform(rng, 0.12, 0.26) * size
        centre = (rng.normal(0, 0.14 * size), -2 * high - rng.normal(0, 0.1 * size), rng.normal(0, 0.14 * size))
        parts.append(place.blob(*map(float, centre), (r, r * uniform(rng, 0.6, 1.0), r * uniform(rng, 0.8, 1.2)), leaves))
    return parts


def bush(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, leaves = _Place(x, z, yaw), _leaves(rng, size)
    parts: list[Primitive] = []
    for _ in range(int(rng.integers(2, 7))):
        r = uniform(rng, 0.15, 0.4) * size
        parts.append(place.blob(float(rng.normal(0, 0.25 * size)), -0.6 * r, float(rng.normal(0, 0.25 * size)),
                                (r, r * uniform(rng, 0.6, 1.1), r * uniform(rng, 0.7, 1.2)), leaves))
    return parts


def potted(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    place, leaves, high = _Place(x, z, yaw), _leaves(rng, 0.5 * size), 0.15 * size
    parts: list[Primitive] = [place.rod(0, -high, 0, 0.14 * size, high, sample_texture(rng, 0.3 * size, 0.7))]
    for _ in range(int(rng.integers(3, 8))):
        turn, lean = uniform(rng, 0, 2 * np.pi), uniform(rng, 0.1, 0.9)
        reach = 0.22 * size
        parts.append(place.blob(float(np.sin(turn) * np.sin(lean) * reach), -2 * high - float(np.cos(lean)) * reach,
                                float(np.cos(turn) * np.sin(lean) * reach), (0.05 * size, 0.2 * size, 0.03 * size), leaves,
                                turn=turn, pitch=lean))
    return parts


def stone(rng: np.random.Generator, x: float, z: float, yaw: float, size: float) -> list[Primitive]:
    radii = tuple((size * rng.uniform(0.2, 0.5, 3)).tolist())
    return [_Place(x, z, yaw).blob(0, -0.4 * radii[1], 0, radii, sample_texture(rng, size, 0.1), pitch=uniform(rng, -0.4, 0.4))]


FURNITURE: dict[str, tuple[Assembly, float]] = {
    "chair": (chair, 0.95), "shelf": (shelf, 1.1), "sofa": (sofa, 1.6), "bed": (bed, 1.6), "cabinet": (cabinet, 1.1),
    "lamp": (lamp, 1.6), "table": (laid_table, 1.4), "plant": (potted, 1.2),
}
"""Name -> (assembly, its usual size in metres)."""

PLANTS: dict[str, tuple[Assembly, float]] = {"tree": (tree, 4.5), "bush": (bush, 1.3), "stone": (stone, 0.9)}


def lifted(part: P, height: float) -> P:
    """The same part, `height` metres higher."""
    return replace(part, pose=replace(part.pose, centre=part.pose.centre - torch.tensor([0.0, height, 0.0])))
