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

from train.textures import Texture

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
