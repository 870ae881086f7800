"""Worlds as arrays: what processes hand over and the batched ray-caster reads. B worlds of up to P shapes and L lamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from train.layouts import Camera, World
from train.primitives import Box, Cylinder, Ellipsoid, HeightField, Plane, Sphere
from train.scenes import camera_rotation
from train.textures import PATTERNS

NOTHING, PLANE, BOX, ELLIPSOID, CYLINDER = range(5)
MAX_SHAPES = 64
MAX_LAMPS = 3
HILLS = MAX_SHAPES
"""The index by which a hit on the hills is told from one on a shape."""
_PATTERN_NUMBERS = {name: number for number, name in enumerate(PATTERNS)}


@dataclass(frozen=True)
class Worlds:
    """One row for each world. Shapes: `kind` (B,P) int64; `rotation` (B,P,9) object to world, row by row; `centre`,
    `size` (B,P,3): half sides, radii, or radius, half height and 0; `casts` (B,P) bool. Textures, with that of the
    hills as the last of P+1: `pattern`, `texture_seed` (B,P+1) int64; `scale`, `grain` (B,P+1); `offset`, `low`, `high`
    (B,P+1,3). Hills: `hills` (B,3) amplitude (0: none), scale and seed. Lamps: `lamp` (B,L,3), `lamp_colour` (B,L,3),
    `sun` (B,L) bool. `ambient`, `zenith`, `horizon` (B,3); `air` (B,4) cloudiness, haze, far, exposure; `seed` (B,)
    int64. Camera: `eye` (B,3); `camera` (B,9) rotation to the world; `fov` (B,) of the longer side in degrees.
    """

    kind: Tensor
    rotation: Tensor
    centre: Tensor
    size: Tensor
    casts: Tensor
    pattern: Tensor
    texture_seed: Tensor
    scale: Tensor
    grain: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    hills: Tensor
    lamp: Tensor
    lamp_colour: Tensor
    sun: Tensor
    ambient: Tensor
    zenith: Tensor
    horizon: Tensor
    air: Tensor
    seed: Tensor
    eye: Tensor
    camera: Tensor
    fov: Tensor

    def to(self, device: torch.device | str) -> Worlds:
        return Worlds(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.kind)


def fits(world: World) -> bool:
    """Whether a world can be packed: at most MAX_SHAPES shapes, MAX_LAMPS lamps and one height field."""
    hills = sum(isinstance(shape, HeightField) for shape in world.primitives)
    return len(world.primitives) - hills <= MAX_SHAPES and len(world.lights) <= MAX_LAMPS and hills <= 1


def _shape(shape: object) -> tuple[int, tuple[float, float, float]]:
    if isinstance(shape, Plane):
        return PLANE, (1.0, 1.0, 1.0)
    if isinstance(shape, Box):
        return BOX, tuple(shape.half.tolist())
    if isinstance(shape, Sphere):
        return ELLIPSOID, (shape.radius,) * 3
    if isinstance(shape, Ellipsoid):
        return ELLIPSOID, tuple(shape.radii.tolist())
    if isinstance(shape, Cylinder):
        return CYLINDER, (shape.radius, shape.half_height, 0.0)
    raise TypeError(f"{type(shape).__name__} has no batched form; add it to train/online/packing.py and raycast.py")


def pack_worlds(worlds: Sequence[tuple[World, Camera]]) -> Worlds:
    """Raises ValueError for a world that does not fit (`fits`), TypeError for a shape that has no batched form."""
    b, p, lamps = len(worlds), MAX_SHAPES, MAX_LAMPS
    floats = {
        "rotation": (b, p, 9), "centre": (b, p, 3), "size": (b, p, 3), "scale": (b, p + 1), "grain": (b, p + 1),
        "offset": (b, p + 1, 3), "low": (b, p + 1, 3), "high": (b, p + 1, 3), "hills": (b, 3), "lamp": (b, lamps, 3),
        "lamp_colour": (b, lamps, 3), "ambient": (b, 3), "zenith": (b, 3), "horizon": (b, 3), "air": (b, 4), "eye": (b, 3),
        "camera": (b, 9), "fov": (b,),
    }
    a = {name: np.zeros(shape, np.float32) for name, shape in floats.items()}
    a |= {name: np.zeros(shape, np.int64) for name, shape in
          {"kind": (b, p), "pattern": (b, p + 1), "texture_seed": (b, p + 1), "seed": (b,)}.items()}
    a |= {"casts": np.zeros((b, p), bool), "sun": np.zeros((b, lamps), bool)}
    a["size"][:] = 1
    a["rotation"][:] = np.eye(3, dtype=np.float32).ravel()
    a["lamp"][..., 1] = -1
    for row, (world, camera) in enumerate(worlds):
        if not fits(world):
            raise ValueError(f"world {row} has {len(world.primitives)} shapes and {len(world.lights)} lamps; "
                             f"expected at most {p} and {lamps}, and one height field")
        place = 0
        for shape in world.primitives:
            at = HILLS if isinstance(shape, HeightField) else place
            if isinstance(shape, HeightField):
                a["hills"][row] = shape.amplitude, shape.scale, shape.seed
            else:
                kind, size = _shape(shape)
                a["kind"][row, at], a["size"][row, at], a["casts"][row, at] = kind, size, shape.casts_shadow
                a["rotation"][row, at] = shape.pose.rotation.numpy().ravel()
                a["centre"][row, at] = shape.pose.centre.numpy()
                place += 1
            texture = shape.texture
            a["pattern"][row, at] = _PATTERN_NUMBERS[texture.pattern]
            a["texture_seed"][row, at] = texture.seed
            a["scale"][row, at], a["grain"][row, at] = texture.scale, texture.grain
            a["offset"][row, at], a["low"][row, at], a["high"][row, at] = texture.offset, texture.low, texture.high
        for at, light in enumerate(world.lights):
            a["lamp"][row, at], a["lamp_colour"][row, at], a["sun"][row, at] = light.position, light.colour, light.sun
        a["ambient"][row], a["zenith"][row], a["horizon"][row] = world.ambient, world.zenith, world.horizon
        a["air"][row] = world.cloudiness, world.haze, world.far, world.exposure
        a["seed"][row] = world.seed
        a["eye"][row], a["camera"][row] = camera.position, camera_rotation(camera).numpy().ravel()
        a["fov"][row] = camera.fov
    return Worlds(**{name: torch.from_numpy(array) for name, array in a.items()})


def joined(parts: Sequence[Worlds]) -> Worlds:
    """Several packets as one."""
    return Worlds(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Worlds)})
