"""Procedural scenes with exact geometry: `render_scene(seed, height, width)` is a picture, its depth and normals.

The camera looks along z of OpenCV axes (x right, y down, z forward). Rays are not normalised: their z is 1, so the
ray parameter at a hit *is* the planar depth, without further arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from train.layouts import Camera, World
from train.mixtures import sample_mixture
from train.primitives import MISS, Primitive, rotation_about
from train.textures import value_noise

HELD_OUT = 1_000_000_000
"""Seeds from here on are kept for evaluation; training never uses them."""

_MIN_VALID = 0.4
_ATTEMPTS = 20


@dataclass(frozen=True)
class Scene:
    """A rendered scene; H rows and W columns.

    `image` (H,W,3) float32 sRGB in [0,1]; `depth` (H,W) float32, planar z in metres (0 where not valid);
    `normal` (H,W,3) unit, OpenCV camera axes, facing the camera ((0,0,-1) where not valid); `mask` (H,W) bool, false
    at the sky; `intrinsics` (3,3) normalised: fx by width, fy by height, principal point (0.5, 0.5).
    """

    image: torch.Tensor
    depth: torch.Tensor
    normal: torch.Tensor
    mask: torch.Tensor
    intrinsics: torch.Tensor


def camera_intrinsics(camera: Camera, height: int, width: int) -> torch.Tensor:
    """(3,3) normalised pinhole matrix; the camera's field of view belongs to the longer side."""
    focal = 0.5 * max(height, width) / float(np.tan(np.radians(camera.fov) / 2))
    return torch.tensor([[focal / width, 0, 0.5], [0, focal / height, 0.5], [0, 0, 1]], dtype=torch.float32)


def camera_rotation(camera: Camera) -> torch.Tensor:
    """(3,3) from camera axes to world axes."""
    return rotation_about(0, -camera.pitch) @ rotation_about(2, camera.roll)


def _rays(intrinsics: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(3, H*W) rays through pixel centres, z = 1, camera axes."""
    u = ((torch.arange(width) + 0.5) / width - intrinsics[0, 2]) / intrinsics[0, 0]
    v = ((torch.arange(height) + 0.5) / height - intrinsics[1, 2]) / intrinsics[1, 1]
    grid_v, grid_u = torch.meshgrid(v, u, indexing="ij")
    return torch.stack((grid_u.flatten(), grid_v.flatten(), torch.ones(height * width)))


def _nearest(
    primitives: tuple[Primitive, ...], origin: torch.Tensor, rays: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance parameter (N,) and index (N,) of the first shape along each ray."""
    best = torch.full((rays.shape[1],), MISS)
    index = torch.zeros(rays.shape[1], dtype=torch.int64)
    for number, shape in enumerate(primitives):
        t = shape.intersect(origin, rays)
        closer = t < best
        best = torch.where(closer, t, best)
        index.masked_fill_(closer, number)
    return best, index


def _lit(world: World, points: torch.Tensor, normals: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Light arriving at surface points (3, N): a hemisphere of ambient light, and Lambert lamps with shadows."""
    up = 0.5 - 0.5 * normals[1]
    light = torch.tensor(world.ambient)[:, None] * (0.45 + 0.55 * up)
    casters = tuple(shape for shape in world.primitives if shape.casts_shadow)
    start = points + normals * 2e-3
    for lamp in world.lights:
        position = torch.tensor(lamp.position)[:, None]
        towards = position.expand_as(points) if lamp.sun else position - start
        reach = (towards * towards).sum(0).sqrt()
        cosine = (normals * towards).sum(0) / reach
        facing = cosine > 0
        strength = cosine.clamp_min(0)
        if not lamp.sun:
            strength = strength / (0.3 + 0.25 * reach * reach)
        if bool(facing.any()):
            blocked = torch.zeros_like(facing)
            ends = MISS if lamp.sun else 1.0  # a ray towards a lamp reaches it at parameter 1
            for shape in casters:
                blocked |= shape.intersect(start, towards) < ends
            strength = torch.where(blocked, 0.0, strength)
        light = light + torch.tensor(lamp.colour)[:, None] * strength
    # A headlight term keeps what faces away from all lamps from becoming one flat colour.
    return light + 0.08 * (normals * view).sum(0).abs()


def _sky(world: World, rays: torch.Tensor) -> torch.Tensor:
    """(3, N) linear colours of rays that hit nothing."""
    unit = rays / (rays * rays).sum(0).sqrt()
    height = (-unit[1]).clamp(0, 1).sqrt()
    colour = torch.lerp(torch.tensor(world.horizon)[:, None], torch.tensor(world.zenith)[:, None], height)
    flat = torch.stack((unit[0], torch.zeros_like(unit[0]), unit[2])) / (0.15 + height)
    cloud = 0.6 * value_noise(3 * flat + 50, world.seed % 9973) + 0.4 * value_noise(8 * flat, world.seed % 9967)
    cover = ((cloud - 0.5) * 4).clamp(0, 1) * world.cloudiness
    return torch.lerp(colour, torch.full_like(colour, 0.95), cover)


def render(world: World, camera: Camera, height: int, width: int) -> Scene:
    """Cast one ray through every pixel centre. ValueError for a size below 1."""
    if height < 1 or width < 1:
        raise ValueError(f"scene size is {height}x{width}; both sides must be at least 1")
    intrinsics = camera_intrinsics(camera, height, width)
    rotation = camera_rotation(camera)
    rays = rotation @ _rays(intrinsics, height, width)
    origin = torch.tensor(camera.position)[:, None]
    depth, index = _nearest(world.primitives, origin, rays)
    mask = depth <= world.far
    image = _sky(world, rays)
    normal = torch.zeros_like(rays)
    view = -rays / (rays * rays).sum(0).sqrt()
    points = origin + rays * torch.where(mask, depth, 0)
    albedo = torch.zeros_like(rays)
    for number, shape in enumerate(world.primitives):
        mine = torch.nonzero(mask & (index == number))[:, 0]
        if len(mine):
            spot = points[:, mine]
            normal[:, mine] = shape.normal(spot)
            albedo[:, mine] = shape.texture.colour(shape.local(spot))
    away = (normal * view).sum(0) < 0
    normal = torch.where(away, -normal, normal)
    valid = torch.nonzero(mask)[:, 0]
    if len(valid):
        lit = _lit(world, points[:, valid], normal[:, valid], view[:, valid])
        colour = albedo[:, valid] * lit
        if world.haze:
            fog = 1 - torch.exp(-world.haze * depth[valid])
            colour = torch.lerp(colour, torch.tensor(world.horizon)[:, None], fog)
        image[:, valid] = colour
    image = (image * world.exposure).clamp(0, 1).pow(1 / 2.2)
    facing = torch.tensor([0.0, 0.0, -1.0])[:, None]
    in_camera = torch.where(mask, rotation.T @ normal, facing)
    in_camera = in_camera / (in_camera * in_camera).sum(0).sqrt()
    return Scene(
        image=image.T.reshape(height, width, 3).contiguous(),
        depth=torch.where(mask, depth, 0).reshape(height, width),
        normal=in_camera.T.reshape(height, width, 3).contiguous(),
        mask=mask.reshape(height, width),
        intrinsics=intrinsics,
    )


def render_scene(
    seed: int, height: int, width: int, layout: str | None = None, mixture: str = "first"
) -> Scene:
    """The scene of this seed: the same bits each time on one machine. `mixture` is one of `train.mixtures.MIXTURES`,
    `layout` names one of its layouts.

    Worlds in which less than 40 % of the pixels are valid (mostly sky), or something is nearer than 5 cm, are drawn
    again from the same generator. ValueError for a negative seed, a size below 1 or an unknown layout or mixture.
    """
    if seed < 0:
        raise ValueError(f"scene seed is {seed}; seeds are 0 or larger")
    rng = np.random.default_rng([2, seed])
    with torch.no_grad():
        for _ in range(_ATTEMPTS):
            world, camera = sample_mixture(rng, mixture, layout)
            scene = render(world, camera, height, width)
            valid = scene.depth[scene.mask]
            if valid.numel() >= _MIN_VALID * height * width and float(valid.min()) > 0.05:
                return scene
    raise RuntimeError(f"scene seed {seed}: no usable world in {_ATTEMPTS} draws; use another seed")
