"""Procedural image edits: pairs of pictures before and after, and the instruction between them as numbers.

The instruction stands for the prompt: what is done, where, and with what colour or light. It is all that tells the
editor which of the possible edits is meant, as words tell a large one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.augmentation import augment_pictures
from train.layouts import Camera, Light, World
from train.primitives import MISS, Plane, Pose, Primitive
from train.scenes import camera_intrinsics, camera_rotation, render
from train.textures import Texture, sample_colour, sample_texture
from train.thesis.worlds import LAYOUTS, draw_scene

EDITS = ("relight", "recolour", "move", "remove", "denoise")
FEATURES = 22
"""Length of an instruction. 0: blank. 1-5: which edit. 6-9: where from, where to (u, v from the middle).
10-12: colour. 13-15: direction to the light, camera axes. 16: brightness. 17-21: for captions, the layout."""

_BLANK, _EDIT, _PLACE, _COLOUR, _LIGHT, _LAYOUT = 0, 1, 6, 10, 13, 17
_GRID = (12, 16)
_CHANGED = 0.004
"""Smallest mean difference of two pictures (of 1) that counts as an edit."""


def blank() -> Tensor:
    """The instruction (FEATURES,) that says nothing: what fine-tuning uses."""
    features = torch.zeros(FEATURES)
    features[_BLANK] = 1
    return features


@dataclass(frozen=True)
class Pair:
    """source, target (H,W,3) sRGB in [0,1]; instruction (FEATURES,) of the edit; caption (FEATURES,) of the target
    alone, for the generator: layout, mean colour; edit names what was done."""

    source: Tensor
    target: Tensor
    instruction: Tensor
    caption: Tensor
    edit: str


def draw_pair(seed: tuple[int, ...], edit: str, domain: str, height: int, width: int) -> Pair:
    """The pair of this seed. Edits that change next to nothing are drawn again. ValueError for an unknown edit."""
    if edit not in EDITS:
        raise ValueError(f"edit is {edit!r}; expected one of {', '.join(EDITS)}")
    for attempt in range(40):
        world, camera, layout, scene = draw_scene((*seed, attempt), domain, height, width)
        rng = np.random.default_rng((*seed, attempt, 1))
        features = torch.zeros(FEATURES)
        features[_EDIT + EDITS.index(edit)] = 1
        if edit == "denoise":
            source, target = _spoiled(scene.image, rng), scene.image
        else:
            changed = _WORLD_EDITS[edit](world, camera, rng, features)
            if changed is None:
                continue
            source, target = scene.image, render(changed, camera, height, width).image
        if float((source - target).abs().mean()) >= _CHANGED:
            return Pair(source, target, features, _caption(target, layout), edit)
    raise RuntimeError(f"thesis pair {seed}: no {edit} that can be seen in 40 draws")


def _caption(picture: Tensor, layout: str) -> Tensor:
    features = torch.zeros(FEATURES)
    features[_COLOUR : _COLOUR + 3] = picture.mean((0, 1))
    features[_LAYOUT + list(LAYOUTS).index(layout)] = 1
    return features


def _spoiled(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A badly exposed, tinted, noisy version of a picture (H,W,3)."""
    picture = augment_pictures(image.permute(2, 0, 1)[None], rng)[0].permute(1, 2, 0)
    noise = torch.from_numpy(rng.standard_normal(picture.shape, dtype=np.float32))
    return (picture + float(rng.uniform(0.05, 0.25)) * noise).clamp(0, 1)


def _relight(world: World, camera: Camera, rng: np.random.Generator, features: Tensor) -> World:
    """Every lamp or sun elsewhere, with another colour, and another ambient light."""
    lights = []
    for light in world.lights:
        colour = tuple(float(c * f) for c, f in zip(light.colour, np.exp(rng.normal(0, 0.35, 3)), strict=True))
        if light.sun:
            up, turn = float(rng.uniform(0.2, 1.3)), float(rng.uniform(0, 2 * np.pi))
            place = (np.cos(up) * np.cos(turn), -np.sin(up), np.cos(up) * np.sin(turn))
        else:
            place = np.array(light.position) * [1, 1, 1] + rng.uniform(-1.2, 1.2, 3) * [1, 0.2, 1]
        lights.append(Light(tuple(float(v) for v in place), colour, light.sun))
    factor = float(np.exp(rng.uniform(-0.9, 0.7)))
    towards = torch.tensor(lights[0].position) - (0 if lights[0].sun else torch.tensor(camera.position))
    features[_LIGHT : _LIGHT + 3] = camera_rotation(camera).T @ (towards / towards.norm().clamp_min(1e-6))
    features[_LIGHT + 3] = factor
    return replace(world, lights=tuple(lights), ambient=tuple(factor * a for a in world.ambient))


def _seen(world: World, camera: Camera) -> dict[int, tuple[float, float, float]]:
    """Things in view that are neither ground nor walls: number -> (u, v) of their middle and mean depth.

    u, v in [-1, 1] from the picture's middle; by a grid of 16 x 12 rays."""
    rows, columns = _GRID
    intrinsics = camera_intrinsics(camera, rows, columns)
    v, u = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    u, v = u.flatten(), v.flatten()
    rays = torch.stack(((u - 0.5) / intrinsics[0, 0], (v - 0.5) / intrinsics[1, 1], torch.ones(rows * columns)))
    rays = camera_rotation(camera) @ rays
    origin = torch.tensor(camera.position)[:, None]
    depths = torch.stack([shape.intersect(origin, rays) for shape in world.primitives])
    best, index = depths.min(0)
    result = {}
    for number, shape in enumerate(world.primitives):
        mine = (index == number) & (best < MISS) & (best <= world.far)
        if shape.casts_shadow and not isinstance(shape, Plane) and 3 <= int(mine.sum()) <= rows * columns // 2:
            result[number] = (float(2 * u[mine].mean() - 1), float(2 * v[mine].mean() - 1), float(best[mine].mean()))
    return result


def _pick(
    world: World, camera: Camera, rng: np.random.Generator, features: Tensor
) -> tuple[int, tuple[float, float, float]] | None:
    """One of the things in view, and its place written into the instruction."""
    seen = _seen(world, camera)
    if not seen:
        return None
    number = list(seen)[int(rng.integers(len(seen)))]
    features[_PLACE : _PLACE + 2] = torch.tensor(seen[number][:2])
    return number, seen[number]


def _with(world: World, number: int, shape: Primitive | None) -> World:
    kept = [s if i != number else shape for i, s in enumerate(world.primitives)]
    return replace(world, primitives=tuple(s for s in kept if s is not None))


def _recolour(world: World, camera: Camera, rng: np.random.Generator, features: Tensor) -> World | None:
    picked = _pick(world, camera, rng, features)
    if picked is None:
        return None
    colour = sample_colour(rng)
    pattern = sample_texture(rng, 1.0)
    shape = world.primitives[picked[0]]
    dark = tuple(0.6 * c for c in colour)
    texture = Texture(pattern.pattern, shape.texture.scale, pattern.offset, dark, colour, seed=pattern.seed)
    features[_COLOUR : _COLOUR + 3] = torch.tensor(colour)
    return _with(world, picked[0], replace(shape, texture=texture))


def _move(world: World, camera: Camera, rng: np.random.Generator, features: Tensor) -> World | None:
    """One thing to another place at the same distance from the camera's plane."""
    picked = _pick(world, camera, rng, features)
    if picked is None:
        return None
    number, (u, v, depth) = picked
    intrinsics = camera_intrinsics(camera, *_GRID)
    to = float(np.clip(u + rng.choice([-1, 1]) * rng.uniform(0.35, 0.9), -0.9, 0.9))
    step = torch.tensor([0.5 * (to - u) / float(intrinsics[0, 0]) * depth, 0.0, 0.0])
    shape = world.primitives[number]
    moved = Pose(shape.pose.rotation, shape.pose.centre + camera_rotation(camera) @ step)
    features[_PLACE + 2 : _PLACE + 4] = torch.tensor([to, v])
    return _with(world, number, replace(shape, pose=moved))


def _remove(world: World, camera: Camera, rng: np.random.Generator, features: Tensor) -> World | None:
    picked = _pick(world, camera, rng, features)
    return None if picked is None else _with(world, picked[0], None)


_WORLD_EDITS: dict[str, Callable[[World, Camera, np.random.Generator, Tensor], World | None]] = {
    "relight": _relight, "recolour": _recolour, "move": _move, "remove": _remove,
}  # fmt: skip
