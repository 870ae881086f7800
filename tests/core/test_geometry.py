"""Closed forms: planes and spheres intersected by hand, never our own converters against each other alone."""

from __future__ import annotations

import math

import pytest
import torch

from fe2e_core import geometry as g


def hand_rays(height: int, width: int, fov: float, cx: float = 0.5, cy: float = 0.5) -> torch.Tensor:
    """Rays written out from the pinhole model in pixels, in float64."""
    f = 0.5 * width / math.tan(math.radians(fov / 2))
    u = torch.arange(width, dtype=torch.float64) + 0.5 - cx * width
    v = torch.arange(height, dtype=torch.float64) + 0.5 - cy * height
    y, x = torch.meshgrid(v / f, u / f, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1)


def test_field_of_view_and_focal_length_are_inverse():
    assert g.focal_from_fov(90.0) == pytest.approx(0.5)
    for fov in (5.0, 60.0, 150.0):
        assert g.fov_from_focal(g.focal_from_fov(fov)) == pytest.approx(fov)
    for bad in (0.0, 180.0, -3.0, math.nan):
        with pytest.raises(ValueError, match="fov_x_degrees"):
            g.focal_from_fov(bad)


def test_intrinsics_have_square_pixels_and_batches():
    k = g.intrinsics_from_fov(90.0, 480, 640, cx=0.4)
    assert k.dtype == torch.float32
    assert k.shape == (3, 3)
    assert k[0, 0] * 640 == pytest.approx(320.0)
    assert k[1, 1] * 480 == pytest.approx(320.0)
    assert k[0, 2] == pytest.approx(0.4)
    assert k[1, 2] == pytest.approx(0.5)
    assert g.intrinsics_from_fov(torch.tensor([40.0, 90.0]), 480, 640).shape == (2, 3, 3)


def test_rays_hit_pixel_centres():
    k = g.intrinsics_from_fov(70.0, 30, 40, cx=0.45, cy=0.6)
    torch.testing.assert_close(
        g.pixel_rays(30, 40, k).double(), hand_rays(30, 40, 70.0, 0.45, 0.6), atol=1e-6, rtol=0
    )
    assert g.pixel_rays(30, 40, k.expand(2, 3, 3)).shape == (2, 30, 40, 3)


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.6, 0, -0.8), (-0.3, 0.9, -0.4), (0.0, -0.99, -0.05)])
def test_normals_of_a_plane_are_exact_up_to_the_border(normal):
    n = torch.tensor(normal, dtype=torch.float64)
    n = n / n.norm()
    rays = hand_rays(24, 32, 60.0)
    facing = rays @ n
    depth = -3.0 / facing
    visible = (facing < -1e-3)[None]
    got = g.normals_from_depth(depth[None], g.intrinsics_from_fov(60.0, 24, 32), visible)
    assert visible.sum() > 50
    cos = (got[0][visible[0]] * n).sum(-1)
    assert cos.min() > 1 - 1e-9


def sphere(height, width, fov, centre, radius):
    """Depth and outward normal of a sphere, by the quadratic formula; background at depth 10."""
    rays = hand_rays(height, width, fov)
    c = torch.tensor(centre, dtype=torch.float64)
    a, b = (rays * rays).sum(-1), rays @ c
    disc = b * b - a * (c @ c - radius**2)
    hit = disc > 0
    depth = torch.where(hit, (b - disc.clamp_min(0).sqrt()) / a, torch.tensor(10.0, dtype=torch.float64))
    normal = (rays * depth[..., None] - c) / radius
    return depth, normal, hit


def test_normals_of_a_sphere_point_outward_and_the_rim_does_not_mix():
    depth, normal, hit = sphere(96, 128, 50.0, (0.1, -0.05, 4.0), 1.0)
    got = g.normals_from_depth(depth[None], g.intrinsics_from_fov(50.0, 96, 128))[0]
    angle = torch.rad2deg(torch.acos((got * normal).sum(-1).clamp(-1, 1)))
    inside = hit & (normal[..., 2] < -0.6)
    assert angle[inside].median() < 0.05
    assert angle[inside].max() < 3.0
    behind = torch.rad2deg(torch.acos((-got[..., 2]).clamp(-1, 1)))
    assert behind[~hit].max() < 1e-3, "the wall beside the silhouette took part of the sphere"


@pytest.mark.parametrize(
    ("name", "right", "up", "toward"),
    [
        # colour of a surface facing right, facing up, facing the camera, as each tool's manual draws them
        ("OpenGL", (1, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1)),
        ("DirectX", (1, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 1)),
        ("OpenCV", (1, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)),
        ("DSINE / BAE", (0, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1)),
    ],
)
def test_named_conventions_colour_a_sphere_as_drawn(name, right, up, toward):
    depth, _, hit = sphere(65, 65, 40.0, (0.0, 0.0, 5.0), 1.2)
    got = g.normals_from_depth(depth[None], g.intrinsics_from_fov(40.0, 65, 65))[0]
    picture = g.encode_normal(got, name)
    rows, cols = torch.where(hit)
    centre = picture[32, 32]
    torch.testing.assert_close(centre, torch.tensor(toward, dtype=torch.float64), atol=0.02, rtol=0)
    rim_right, rim_top = picture[32, cols.max() - 2], picture[rows.min() + 2, 32]
    r, u = torch.tensor(right), torch.tensor(up)
    assert (rim_right[0] - 0.5) * (r[0] - 0.5) > 0.12, "red has the wrong sign on the right rim"
    assert (rim_top[1] - 0.5) * (u[1] - 0.5) > 0.12, "green has the wrong sign on the top rim"
    back = g.decode_normal(picture, name)
    torch.testing.assert_close(back, got, atol=1e-6, rtol=0)


def test_network_axes_are_left_up_toward():
    wall = torch.tensor([0.0, 0.0, 2.0])
    assert g.normal_from_network(wall).tolist() == [0, 0, -1]
    assert g.normal_from_network(torch.tensor([1.0, 0, 0])).tolist() == [-1, 0, 0]
    assert g.normal_from_network(torch.tensor([0, 3.0, 0])).tolist() == [0, -1, 0]
    assert g.normal_from_network(torch.zeros(2, 3)).tolist() == [[0, 0, -1]] * 2
    v = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    torch.testing.assert_close(g.normal_from_network(g.normal_to_network(v)), v)


def test_log_depth_both_ways_with_one_range_per_picture():
    label = torch.tensor([-1.0, 0.0, 1.0, 1.2]).reshape(1, 1, 4).expand(2, 1, 4)
    s, near = torch.tensor([math.log(4.0), math.log(100.0)]), torch.tensor([0.0, math.log(2.0)])
    depth = g.depth_from_log(label, s, near)
    torch.testing.assert_close(depth[0, 0, :3], torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(depth[1, 0, :3], torch.tensor([2.0, 20.0, 200.0]))
    torch.testing.assert_close(g.log_from_depth(depth, s, near), label, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="log_range"):
        g.depth_from_log(label, torch.ones(3))


def test_distance_becomes_planar_depth():
    rays = hand_rays(10, 14, 80.0)
    k = g.intrinsics_from_fov(80.0, 10, 14)
    torch.testing.assert_close(
        g.distance_to_depth(7.0 * rays.norm(dim=-1), k),
        torch.full((10, 14), 7.0, dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )
    points = g.points_from_depth(torch.full((10, 14), 7.0, dtype=torch.float64), k)
    torch.testing.assert_close(points, rays * 7, atol=1e-5, rtol=0)


def test_edges_are_silhouettes_not_slopes_or_creases():
    rays = hand_rays(40, 60, 70.0)
    floor = torch.where(rays[..., 1] > 0.02, 1.0 / rays[..., 1].clamp_min(1e-6), 50.0)
    crease = torch.minimum(floor, torch.full_like(floor, 5.0))
    assert not g.depth_edges(crease[None]).any()
    box = crease.clone()
    box[10:20, 20:30] = 1.5
    edges = g.depth_edges(box[None])[0]
    assert edges[10:20, 20].all()
    assert edges[10:20, 19].all()
    assert edges[10:20, 30].all()
    assert edges[9, 20:30].all()
    assert not edges[13:17, 23:27].any()
    assert not edges[:, :17].any()
    assert not edges[24:].any()
    mask = torch.ones(1, 40, 60, dtype=torch.bool)
    mask[0, 5, 5] = False
    assert g.depth_edges(crease[None], mask)[0, 5, 4:7].all()
