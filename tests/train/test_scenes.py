"""The ray-caster against closed forms that are worked out here, not by its own code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from train.layouts import LAYOUTS, Camera, Light, World
from train.primitives import Box, Cylinder, Plane, Sphere, pose
from train.scenes import HELD_OUT, render, render_scene
from train.textures import PATTERNS, Texture

GREY = Texture("solid", 1.0, (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LAMP = (Light((0.0, -3.0, 0.0), (1.0, 1.0, 1.0)),)


def rays(height: int, width: int, fov: float) -> np.ndarray:
    """(H,W,3) float64, z = 1; `fov` in degrees along the longer side."""
    focal = max(height, width) / 2 / math.tan(math.radians(fov) / 2)
    v, u = np.mgrid[:height, :width]
    return np.stack([(u + 0.5 - width / 2) / focal, (v + 0.5 - height / 2) / focal, np.ones((height, width))], -1)


def world(*shapes) -> World:
    return World(tuple(shapes), LAMP)


def test_ground_plane():
    scene = render(world(Plane(pose((0, 0, 0)), GREY)), Camera((0.0, -1.5, 0.0), fov=70, pitch=0.3), 48, 64)
    ray = rays(48, 64, 70)
    # Up, in a camera that looks 0.3 rad down, is (0, -cos, -sin); the floor is 1.5 m below along it.
    up = np.array([0, -math.cos(0.3), -math.sin(0.3)])
    slope = ray @ up
    depth = np.where(slope < 0, -1.5 / slope, np.inf)
    valid = depth <= 80
    assert valid.any() and not valid.all()
    np.testing.assert_array_equal(scene.mask.numpy(), valid)
    np.testing.assert_allclose(scene.depth.numpy()[valid], depth[valid], rtol=2e-4)
    np.testing.assert_allclose(scene.normal.numpy()[valid], np.broadcast_to(up, ray.shape)[valid], atol=1e-5)
    assert (scene.depth.numpy()[~valid] == 0).all()


def test_facing_wall():
    wall = Box(pose((0, -1, 5)), torch.tensor([50.0, 50.0, 1.0]), GREY)
    scene = render(world(wall), Camera((0.0, -1.0, 0.0), fov=80), 32, 48)
    torch.testing.assert_close(scene.depth, torch.full((32, 48), 4.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(scene.normal, torch.tensor([0.0, 0.0, -1.0]).expand(32, 48, 3))


@pytest.mark.parametrize("roll", [0.0, 0.7])
def test_sphere(roll):
    centre, radius = np.array([0.3, -1.2, 4.0]), 0.9
    sphere = Sphere(pose(tuple(centre.tolist())), radius, GREY)
    scene = render(world(sphere), Camera((0.0, -1.0, 0.0), fov=50, roll=roll), 60, 80)
    turn = np.array([[math.cos(roll), math.sin(roll), 0], [-math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    place = turn @ (centre - np.array([0.0, -1.0, 0.0]))
    ray = rays(60, 80, 50)
    a, b = (ray * ray).sum(-1), ray @ place
    discriminant = b * b - a * (place @ place - radius**2)
    inner = discriminant > 1e-2  # away from the silhouette, where a hair decides
    depth = (b - np.sqrt(np.maximum(discriminant, 0))) / a
    assert inner.sum() > 200
    assert scene.mask.numpy()[inner].all() and not scene.mask.numpy()[discriminant < -1e-2].any()
    np.testing.assert_allclose(scene.depth.numpy()[inner], depth[inner], rtol=1e-5)
    normal = (ray * depth[..., None] - place) / radius
    np.testing.assert_allclose(scene.normal.numpy()[inner], normal[inner], atol=1e-4)


def test_upright_cylinder_seen_from_the_side():
    cylinder = Cylinder(pose((0.0, -1.0, 5.0)), 1.0, 2.0, GREY)
    scene = render(world(cylinder), Camera((0.0, -1.0, 0.0), fov=40), 33, 33)
    ray = rays(33, 33, 40)[16]
    x = ray[:, 0]
    discriminant = 25 - (1 + x * x) * 24
    hit = discriminant > 1e-2
    depth = (5 - np.sqrt(np.maximum(discriminant, 0))) / (1 + x * x)
    np.testing.assert_allclose(scene.depth.numpy()[16][hit], depth[hit], rtol=1e-5)
    expected = np.stack([x * depth, np.zeros(33), depth - 5], -1)
    np.testing.assert_allclose(scene.normal.numpy()[16][hit], expected[hit], atol=1e-4)


def test_cylinder_cap_seen_from_above():
    cylinder = Cylinder(pose((0.0, 0.0, 0.0)), 1.0, 0.5, GREY)
    scene = render(world(cylinder), Camera((0.0, -3.0, 0.0), fov=20, pitch=math.pi / 2), 9, 9)
    torch.testing.assert_close(scene.depth, torch.full((9, 9), 2.5), rtol=1e-5, atol=0)
    torch.testing.assert_close(scene.normal, torch.tensor([0.0, 0.0, -1.0]).expand(9, 9, 3), atol=1e-5, rtol=0)


def test_turned_box_shows_two_faces():
    angle = 0.5
    box = Box(pose((0.0, -1.0, 6.0), yaw=angle), torch.tensor([1.0, 1.0, 1.0]), GREY)
    scene = render(world(box), Camera((0.0, -1.0, 0.0), fov=40), 41, 41)
    found = {tuple(round(v, 3) for v in n) for n in scene.normal[scene.mask].tolist()}
    expected = {(-math.sin(angle), 0.0, -math.cos(angle)), (math.cos(angle), 0.0, -math.sin(angle))}
    assert found == {tuple(round(v, 3) + 0.0 for v in n) for n in expected}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_give_consistent_scenes(layout):
    for seed in range(3):
        scene = render_scene(seed, 48, 64, layout)
        assert scene.image.shape == (48, 64, 3) and scene.depth.shape == (48, 64)
        assert 0 <= float(scene.image.min()) and float(scene.image.max()) <= 1
        assert torch.isfinite(scene.image).all() and torch.isfinite(scene.depth).all()
        assert float(scene.mask.float().mean()) >= 0.4
        assert (scene.depth[scene.mask] > 0).all() and (scene.depth[~scene.mask] == 0).all()
        torch.testing.assert_close(scene.normal.norm(dim=-1), torch.ones(48, 64))
        fx, fy = float(scene.intrinsics[0, 0]) * 64, float(scene.intrinsics[1, 1]) * 48
        assert fx == pytest.approx(fy, rel=1e-6)  # square pixels
        ray = torch.from_numpy(rays(48, 64, math.degrees(2 * math.atan(32 / fx)))).float()
        assert ((scene.normal * ray).sum(-1)[scene.mask] <= 1e-4).all()  # all surfaces face the camera


def test_same_seed_same_bits_and_other_seed_other_scene():
    a, b, c = render_scene(HELD_OUT, 32, 48), render_scene(HELD_OUT, 32, 48), render_scene(HELD_OUT + 1, 32, 48)
    assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("image", "depth", "normal", "mask", "intrinsics"))
    assert not torch.equal(a.image, c.image)


def test_shadow_darkens_what_the_lamp_does_not_see():
    ground, block = Plane(pose((0, 0, 0)), GREY), Sphere(pose((0.0, -2.0, 4.0)), 0.5, GREY)
    lamp = (Light((0.0, -6.0, 4.0), (3.0, 3.0, 3.0)),)
    camera = Camera((0.0, -1.0, 0.0), fov=60, pitch=0.2)
    lit = render(World((ground,), lamp), camera, 40, 60)
    shaded = render(World((ground, block), lamp), camera, 40, 60)
    ground_only = shaded.mask & (shaded.depth - lit.depth).abs().lt(1e-4)
    darker = (lit.image - shaded.image).mean(-1)[ground_only]
    assert float(darker.min()) > -1e-6 and float(darker.max()) > 0.1


def test_every_pattern_stays_a_colour():
    points = torch.rand(3, 500) * 20 - 10
    for pattern in PATTERNS:
        colour = Texture(pattern, 1.3, (0.1, 0.2, 0.3), (0.1, 0.1, 0.1), (0.9, 0.5, 0.2), 0.3, 5).colour(points)
        assert colour.shape == (3, 500) and 0 <= float(colour.min()) and float(colour.max()) <= 1
        assert pattern == "solid" or float(colour.std()) > 0


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown; choose one of room"):
        render_scene(0, 8, 8, "cave")
    with pytest.raises(ValueError, match="seeds are 0"):
        render_scene(-1, 8, 8)
    with pytest.raises(ValueError, match="at least 1"):
        render_scene(0, 0, 8)
