"""Shapes that a ray can hit exactly. World axes: x right, y down, z forward (metres).

Every shape answers two questions: how far along a ray is the first hit, and what is the normal there. A new shape
is one more class with the methods of `Primitive`. Points and directions are stored (3, N), one contiguous row per
coordinate, because that is what makes a Python ray-caster quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from train.textures import Texture, value_noise

MISS = float("inf")
EPSILON = 1e-4


class Primitive(Protocol):
    """A shape with a texture. `casts_shadow` is false for what encloses the scene."""

    texture: Texture
    casts_shadow: bool

    def intersect(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """Rays origin (3, 1 or N) + t * direction (3, N) -> smallest t > EPSILON, infinity on a miss."""

    def normal(self, points: torch.Tensor) -> torch.Tensor:
        """Surface points (3, N) -> unit outward normals (3, N)."""

    def local(self, points: torch.Tensor) -> torch.Tensor:
        """World points (3, N) -> the object's own coordinates in metres (3, N), for its texture."""

    def clearance(self, point: np.ndarray) -> float:
        """A lower bound of the distance in metres from `point` (3,) to the shape's bounding sphere."""


@dataclass(frozen=True)
class Pose:
    """`rotation` (3, 3) takes object vectors to the world; `centre` (3,) is in world metres."""

    rotation: torch.Tensor
    centre: torch.Tensor

    def to_local(self, points: torch.Tensor) -> torch.Tensor:
        return self.rotation.T @ (points - self.centre[:, None])


def rotation_about(axis: int, angle: float) -> torch.Tensor:
    """(3, 3) right-handed rotation about coordinate axis 0, 1 or 2 by `angle` radians."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = torch.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def pose(centre: tuple[float, float, float], yaw: float = 0, pitch: float = 0, roll: float = 0) -> Pose:
    """A pose from a world centre in metres and angles in radians (yaw about the vertical, applied last)."""
    rotation = rotation_about(1, yaw) @ rotation_about(0, pitch) @ rotation_about(2, roll)
    return Pose(rotation, torch.tensor(centre, dtype=torch.float32))


@dataclass(frozen=True)
class Plane:
    """An infinite plane through the pose's centre; its normal is the object's y axis negated (up)."""

    pose: Pose
    texture: Texture
    casts_shadow: bool = False

    def intersect(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        up = -self.pose.rotation[:, 1]
        height = up @ (origin - self.pose.centre[:, None])
        t = -height / (up @ direction)
        return torch.where(t > EPSILON, t, MISS)

    def normal(self, points: torch.Tensor) -> torch.Tensor:
        return -self.pose.rotation[:, 1:2].expand(3, points.shape[1])

    def local(self, points: torch.Tensor) -> torch.Tensor:
        return self.pose.to_local(points)

    def clearance(self, point: np.ndarray) -> float:
        return MISS


@dataclass(frozen=True)
class Box:
    """A rotated box with half sizes `half` (3,) metres. Seen from inside it is a room."""

    pose: Pose
    half: torch.Tensor
    texture: Texture
    casts_shadow: bool = True

    def intersect(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        start = self.pose.to_local(origin)
        inverse = 1 / (self.pose.rotation.T @ direction)
        half = self.half[:, None]
        first, second = (-half - start) * inverse, (half - start) * inverse
        near = torch.minimum(first, second).amax(0)
        far = torch.maximum(first, second).amin(0)
        t = torch.where(near > EPSILON, near, far)
        return torch.where((near <= far) & (t > EPSILON), t, MISS)

    def normal(self, points: torch.Tensor) -> torch.Tensor:
        local = self.pose.to_local(points) / self.half[:, None]
        size = local.abs()
        on_x = (size[0] >= size[1]) & (size[0] >= size[2])
        on_y = ~on_x & (size[1] >= size[2])
        face = torch.stack((on_x, on_y, ~(on_x | on_y)))
        return self.pose.rotation @ (torch.sign(local) * face)

    def local(self, points: torch.Tensor) -> torch.Tensor:
        return self.pose.to_local(points)

    def clearance(self, point: np.ndarray) -> float:
        return float(np.linalg.norm(point - self.pose.centre.numpy()) - np.linalg.norm(self.half.numpy()))


@dataclass(frozen=True)
class Sphere:
    """A sphere with `radius` metres."""

    pose: Pose
    radius: float
    texture: Texture
    casts_shadow: bool = True

    def intersect(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        start = origin - self.pose.centre[:, None]
        return _first_root(direction, start, self.radius)

    def normal(self, points: torch.Tensor) -> torch.Tensor:
        return (points - self.pose.centre[:, None]) / self.radius

    def local(self, points: torch.Tensor) -> torch.Tensor:
        return self.pose.to_local(points)

    def clearance(self, point: np.ndarray) -> float:
        return float(np.linalg.norm(point - self.pose.centre.numpy()) - self.radius)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with half axes `radii` (3,) metres along the object's axes: leaves, cushions, stones."""

    pose: Pose
    radii: torch.Tensor
    texture: Texture
    casts_shadow: bool = True

    def intersect(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        radii = self.radii[:, None]
        return _first_root(self.pose.rotation.T @ direction / radii, self.pose.to_local(origin) / radii, 1.0)

    def normal(self, points: torch.Tensor) -> torch.Tensor:
        gradient = self.pose.to_local(points) / self.radii[:, None] ** 2
        return self.pose.rotation @ (gradient / (gradient * gradient).sum(0).sqrt())

    def local(self, points: torch.Tensor) -> torch.Tensor:
        return self.pose.to_local(points)

    def clearance(self, point: np.ndarray) -> float:
        return float(np.linalg.norm(point - self.pose.centre.numpy()) - float(self.radii.max()))


@dataclass(frozen=True)
class Cylinder:
    """A capped cylinder: axis along the object's y, `radius` and `half_height` in metres."""

    pose: Pose
    radius: float
    half_height: float
    texture: Texture
    casts_shadow: bool = True

    def intersect(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        start = self.pose.to_local(origin).expand(3, direction.shape[1])
        ray = self.pose.rotation.T @ direction
        side = _first_root(ray[0::2], start[0::2], self.radius)
        side = torch.where((start[1] + side * ray[1]).abs() <= self.half_height, side, MISS)
        best = side
        for level in (-self.half_height, self.half_height):
            t = (level - start[1]) / ray[1]
            x, z = start[0] + t * ray[0], start[2] + t * ray[2]
            inside = (x * x + z * z <= self.radius * self.radius) & (t > EPSILON)
            best = torch.minimum(best, torch.where(inside, t, MISS))
        return best

    def normal(self, points: torch.Tensor) -> torch.Tensor:
        local = self.pose.to_local(points)
        x, y, z = local
        cap = y.abs() / self.half_height >= (x * x + z * z).sqrt() / self.radius
        zero = torch.zeros_like(x)
        vector = torch.where(cap, torch.stack((zero, torch.sign(y), zero)), torch.stack((x, zero, z)) / self.radius)
        return self.pose.rotation @ vector

    def local(self, points: torch.Tensor) -> torch.Tensor:
        return self.pose.to_local(points)

    def clearance(self, point: np.ndarray) -> float:
        reach = float(np.hypot(self.radius, self.half_height))
        return float(np.linalg.norm(point - self.pose.centre.numpy()) - reach)


NEAR_STEP, FAR_STEP, STEPS, HALVINGS = 0.2, 90.0, 96, 14
"""A ray is followed over hills at this many places, in geometric progression of the ray parameter, and the first place
below ground is then closed in on by halving: 7 % of the distance is the thinnest crest that is sure to be seen."""


def hill_height(x: torch.Tensor, z: torch.Tensor, amplitude: float, scale: float, seed: int) -> torch.Tensor:
    """Height in metres (>= 0) at world x, z (N,): two octaves of noise, waves of about `scale` metres."""
    flat = torch.stack((x, torch.zeros_like(x), z)) / scale
    return amplitude * (0.75 * value_noise(flat, seed) + 0.25 * value_noise(flat * 2.9, seed + 1))


@dataclass(frozen=True)
class HeightField:
    """Rolling ground y = -height(x, z), up to `amplitude` metres high in waves of about `scale` metres."""

    amplitude: float
    scale: float
    seed: int
    texture: Texture
    casts_shadow: bool = False

    def height(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return hill_height(x, z, self.amplitude, self.scale, self.seed)

    def intersect(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        def above(t: torch.Tensor) -> torch.Tensor:
            point = origin + direction * t
            return -point[1] - self.height(point[0], point[2])

        low = torch.full_like(direction[0], NEAR_STEP)
        high, found = low.clone(), torch.zeros_like(low, dtype=torch.bool)
        ratio = (FAR_STEP / NEAR_STEP) ** (1 / STEPS)
        for step in range(1, STEPS + 1):
            place = torch.full_like(low, NEAR_STEP * ratio**step)
            below = above(place) < 0
            high = torch.where(below & ~found, place, high)
            found = found | below
            low = torch.where(found, low, place)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            below = above(middle) < 0
            low, high = torch.where(below, low, middle), torch.where(below, middle, high)
        return torch.where(found, high, MISS)

    def normal(self, points: torch.Tensor) -> torch.Tensor:
        step = 0.01 * self.scale
        x, z = points[0], points[2]
        slope_x = (self.height(x + step, z) - self.height(x - step, z)) / (2 * step)
        slope_z = (self.height(x, z + step) - self.height(x, z - step)) / (2 * step)
        vector = torch.stack((-slope_x, -torch.ones_like(x), -slope_z))
        return vector / (vector * vector).sum(0).sqrt()

    def local(self, points: torch.Tensor) -> torch.Tensor:
        return points

    def clearance(self, point: np.ndarray) -> float:
        return MISS


def _first_root(direction: torch.Tensor, start: torch.Tensor, radius: float) -> torch.Tensor:
    """Smallest t > EPSILON with |start + t * direction| = radius, over however many coordinates are given."""
    a = (direction * direction).sum(0)
    b = (direction * start).sum(0)
    # The distance of the line from the centre, computed from its foot: b*b - a*c cancels badly far away.
    foot = start - (b / a) * direction
    discriminant = radius * radius - (foot * foot).sum(0)
    root = (discriminant.clamp_min(0) / a).sqrt()
    near, far = -b / a - root, -b / a + root
    t = torch.where(near > EPSILON, near, far)
    return torch.where((discriminant > 0) & (t > EPSILON), t, MISS)
