"""Clips of a camera that walks through a drawn scene while something passes before its lens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from tests.core.simulation import eq7_label
from train.layouts import Camera, World, sample_layout
from train.primitives import Sphere, pose
from train.scenes import camera_rotation, render
from train.textures import sample_texture


@dataclass(frozen=True)
class Clip:
    """T frames of a camera; image (T, H, W, 3), depth (T, H, W) in metres, mask (T, H, W) bool (no sky), passing
    (T, H, W) bool: what passes before the lens. positions (T, 3) and rotations (T, 3, 3) take camera to world
    axes; intrinsics (3, 3).
    """

    image: torch.Tensor
    depth: torch.Tensor
    mask: torch.Tensor
    passing: torch.Tensor
    positions: torch.Tensor
    rotations: torch.Tensor
    intrinsics: torch.Tensor

    def labels(self, noise: float, seed: int = 0) -> torch.Tensor:
        """(T, H, W) labels of Eq. 7, each frame normalised by itself, in BF16, with independent noise."""
        generator = torch.Generator().manual_seed(seed)
        out = []
        for depth, mask in zip(self.depth, self.mask, strict=True):
            label, _ = eq7_label(depth, mask)
            label = label + noise * torch.randn(label.shape, generator=generator)
            out.append(label.clamp(-1, 1).to(torch.bfloat16).float())
        return torch.stack(out)


def walk(seed: int, frames: int, height: int, width: int, layout: str = "room", ball: bool = True) -> Clip:
    """A walk of 1.5 cm a frame through the scene of a seed; a ball enters after a quarter and leaves before the
    last quarter.
    """
    rng = np.random.default_rng([4, seed])
    world, camera = sample_layout(rng, layout)
    texture = sample_texture(rng, 0.1)
    images, depths, masks, passing, positions, rotations = [], [], [], [], [], []
    k = None
    for t in range(frames):
        here = _moved(camera, t)
        empty = render(world, here, height, width)
        share = (t / frames - 0.25) / 0.5
        scene = empty
        if ball and 0 <= share <= 1:
            scene = render(_with_ball(world, here, share, texture), here, height, width)
        images.append(scene.image)
        depths.append(scene.depth)
        masks.append(scene.mask)
        passing.append(scene.mask & (scene.depth < empty.depth - 1e-3))
        positions.append(torch.tensor(here.position, dtype=torch.float64))
        rotations.append(camera_rotation(here).double())
        k = scene.intrinsics
    parts = (images, depths, masks, passing, positions, rotations)
    return Clip(*(torch.stack(p) for p in parts), k)


def _moved(camera: Camera, t: int) -> Camera:
    x, y, z = camera.position
    return replace(
        camera,
        position=(x + 0.1 * math.sin(t / 14), y + 0.02 * math.sin(t / 5), z + 0.015 * t),
        pitch=camera.pitch + 0.03 * math.sin(t / 11),
    )


def _with_ball(world: World, camera: Camera, share: float, texture: object) -> World:
    """A ball 20 cm wide, 70 cm before the lens, `share` of the way from the right to the left."""
    focal = 0.5 / math.tan(math.radians(camera.fov) / 2)
    local = torch.tensor([0.7 * (0.5 + 0.14) / focal * (1 - 2 * share), 0.1, 0.7])
    centre = camera_rotation(camera) @ local + torch.tensor(camera.position)
    sphere = Sphere(pose(tuple(centre.tolist())), 0.1, texture, casts_shadow=False)
    return replace(world, primitives=(*world.primitives, sphere))


def spread_of_fixed_points(clip: Clip, log_depth: torch.Tensor) -> float:
    """How much the depth of fixed world points varies over time: ln (estimate / truth), standard deviation,
    median over the points that the middle frame sees; log_depth (T, H, W). A frame counts for a point if it
    sees it.
    """
    frames, height, width = clip.depth.shape
    k = clip.intrinsics.double()
    v, u = (
        x.flatten()
        for x in torch.meshgrid(torch.arange(2, height, 5), torch.arange(2, width, 5), indexing="ij")
    )
    middle = frames // 2
    z = clip.depth[middle, v, u].double()
    local = torch.stack(
        [((u + 0.5) / width - k[0, 2]) / k[0, 0] * z, ((v + 0.5) / height - k[1, 2]) / k[1, 1] * z, z], -1
    )
    keep = clip.mask[middle, v, u] & ~clip.passing[middle, v, u]
    world = (local @ clip.rotations[middle].T + clip.positions[middle])[keep]
    errors = torch.full((frames, len(world)), math.nan, dtype=torch.float64)
    for t in range(frames):
        x, y, z = ((world - clip.positions[t]) @ clip.rotations[t]).unbind(-1)
        col = ((x / z * k[0, 0] + k[0, 2]) * width).floor().long()
        row = ((y / z * k[1, 1] + k[1, 2]) * height).floor().long()
        inside = (z > 0.05) & (col >= 0) & (col < width) & (row >= 0) & (row < height)
        row, col = row.clamp(0, height - 1), col.clamp(0, width - 1)
        true = clip.depth[t, row, col].double()
        visible = inside & clip.mask[t, row, col] & ((true / z - 1).abs() < 0.05)
        error = log_depth[t, row, col].double() - torch.log(true.clamp_min(1e-6))
        errors[t] = torch.where(visible, error, math.nan)
    enough = torch.isfinite(errors).sum(0) >= frames // 3
    centred = errors[:, enough] - errors[:, enough].nanmean(0)
    return float(centred.square().nanmean(0).sqrt().median())


def alone(labels: torch.Tensor, clip: Clip) -> torch.Tensor:
    """(T, H, W) ln depth if the first frame's true scale is given to all: what a user has without the solver."""
    gain, offset = true_scale(labels[0], clip.depth[0], clip.mask[0])
    return gain * labels + offset


def true_scales(labels: torch.Tensor, clip: Clip) -> torch.Tensor:
    """(T, H, W) ln depth with each frame's scale fitted to the truth: the best that scales can do."""
    pairs = [true_scale(*p) for p in zip(labels, clip.depth, clip.mask, strict=True)]
    return torch.stack([g * label + o for (g, o), label in zip(pairs, labels, strict=True)])


def true_scale(label: torch.Tensor, depth: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """Gain and offset of ln depth = gain * label + offset by least squares over pixels that are not cut off."""
    use = mask & (label.abs() < 1)
    x, y = label[use].double(), torch.log(depth[use]).double()
    gain = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return gain, float(y.mean() - gain * x.mean())
