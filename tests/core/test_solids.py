"""Meshes, clouds and splats of ray-cast rooms, measured in the files that programs get."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fe2e_core.gltf import encode_texture, write_glb
from fe2e_core.mesh import grid_mesh
from fe2e_core.ply import write_ply
from fe2e_core.pointcloud import point_cloud
from fe2e_core.splats import quaternion_from_matrix, surfels
from tests.core.solid_files import read_glb, read_ply
from train.scenes import Scene, render_scene

SEEDS = (11, 12, 14)


@pytest.fixture(scope="module", params=SEEDS)
def room(request) -> Scene:
    return render_scene(request.param, 240, 320, "room")


def mesh_of(scene: Scene, **options):
    return grid_mesh(scene.depth, scene.intrinsics, scene.normal, scene.mask, **options)


def planes(points: np.ndarray, normals: np.ndarray) -> list[np.ndarray]:
    """Groups of at least 4 % of the points that share an exact normal and an offset along it."""
    offset = (points * normals).sum(1, keepdims=True)
    key = np.round(np.concatenate([normals / 0.02, offset / 0.02], axis=1))
    _, group, counts = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    return [points[group.ravel() == i] for i in np.flatnonzero(counts > 0.04 * len(points))]


def check_planes(points: np.ndarray, normals: np.ndarray) -> None:
    """Flat to 1 % of the distance, and walls that are square in the scene are square here within a degree."""
    found = planes(points, normals)
    assert len(found) >= 2
    fitted = []
    for part in found:
        centre = part.mean(0)
        _, _, axes = np.linalg.svd(part - centre, full_matrices=False)
        assert np.abs((part - centre) @ axes[2]).max() < 0.01 * np.abs(centre[2])
        fitted.append(axes[2])
    angles = [np.degrees(np.arccos(np.clip(abs(a @ b), 0, 1))) for a, b in itertools.combinations(fitted, 2)]
    square = [angle for angle in angles if angle > 80]
    assert square, "the room shows at least one right angle"
    assert min(square) > 89


def test_room_mesh_keeps_planes_and_right_angles(room):
    document, arrays = read_glb(write_glb(mesh_of(room), encode_texture(room.image)))
    check_planes(arrays["POSITION"], arrays["NORMAL"])
    assert (arrays["POSITION"][:, 2] < 0).all(), "the camera looks along -z"
    # y up: the floor, whose normal points up, lies below the camera
    floor = arrays["NORMAL"][:, 1] > 0.8
    assert floor.any()
    assert (arrays["POSITION"][floor, 1] < 0.3 * np.abs(arrays["POSITION"][floor, 2])).all()
    assert np.allclose(np.linalg.norm(arrays["NORMAL"], axis=1), 1, atol=1e-5)
    assert document["asset"]["version"] == "2.0"


def test_triangles_face_the_camera_and_agree_with_the_normals(room):
    _, arrays = read_glb(write_glb(mesh_of(room)))
    p, q, r = (arrays["POSITION"][arrays["indices"][:, i]] for i in range(3))
    face = np.cross(q - p, r - p)
    assert ((face * p).sum(1) < 0).all(), "counter-clockwise seen from the camera at the origin"
    face /= np.linalg.norm(face, axis=1, keepdims=True)
    agreement = (face * arrays["NORMAL"][arrays["indices"][:, 0]]).sum(1)
    assert np.median(agreement) > 0.999
    assert (agreement > 0.9).mean() > 0.97


def test_texture_coordinates_find_the_pixel(room):
    mesh = mesh_of(room)
    height, width = room.depth.shape
    rows = (mesh.uvs[:, 1] * height - 0.5).round().long()
    columns = (mesh.uvs[:, 0] * width - 0.5).round().long()
    assert torch.allclose(mesh.vertices[:, 2], room.depth[rows, columns])
    assert (mesh.uvs[:, 1] * height - 0.5 - rows).abs().max() < 1e-3


def two_walls(depth_left: float, depth_right: float, size: int = 32):
    depth = torch.full((size, size), depth_left)
    depth[:, size // 2 :] = depth_right
    normal = torch.zeros(size, size, 3)
    normal[..., 2] = -1
    intrinsics = torch.tensor([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]])
    return depth, intrinsics, normal


def test_depth_edges_are_cut_and_only_they():
    depth, intrinsics, normal = two_walls(2.0, 3.0)
    whole = grid_mesh(depth, intrinsics, normal, edge=0.0, max_angle=90.0)
    cut = grid_mesh(depth, intrinsics, normal)
    assert len(whole.faces) == 2 * 31 * 31
    assert len(cut.faces) == 2 * 31 * 30, "one column of squares is gone"
    z = cut.vertices[:, 2][cut.faces]
    assert (z.amax(1) == z.amin(1)).all()
    # a jump that the tolerance allows stays; the ramp in between is then seen edge-on and cut by its angle
    tolerant = grid_mesh(depth, intrinsics, normal, edge=1.0, max_angle=60.0)
    assert len(tolerant.faces) == len(cut.faces)


def test_a_slanted_floor_is_not_torn():
    """A floor 1.5 m under the camera: neighbouring rows differ by a third in depth near the horizon."""
    height, width = 60, 80
    intrinsics = torch.tensor([[0.8, 0, 0.5], [0, 0.8 * width / height, 0.5], [0, 0, 1]])
    v = ((torch.arange(height) + 0.5) / height - 0.5) / intrinsics[1, 1]
    depth = torch.where(v > 0.05, 1.5 / v, torch.zeros_like(v))[:, None].expand(height, width)
    normal = torch.zeros(height, width, 3)
    normal[..., 1] = -1
    rows = int((v > 0.05).sum())
    mesh = grid_mesh(depth, intrinsics, normal, max_angle=90.0)
    assert len(mesh.faces) == 2 * (rows - 1) * (width - 1)


def test_mask_stride_and_errors():
    depth, intrinsics, normal = two_walls(2.0, 2.0)
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[:10] = False
    mesh = grid_mesh(depth, intrinsics, normal, mask)
    assert len(mesh.faces) == 2 * 21 * 31
    coarse = grid_mesh(depth, intrinsics, normal, stride=5)
    assert len(coarse.faces) == 2 * 7 * 7
    assert coarse.uvs.amax().item() == pytest.approx(31.5 / 32)
    holes = depth.clone()
    holes[5, 5] = float("nan")
    holes[8, 8] = 0.0
    assert torch.isfinite(grid_mesh(holes, intrinsics, normal).vertices).all()
    with pytest.raises(ValueError, match="no triangle"):
        grid_mesh(depth, intrinsics, normal, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="no triangle"):
        grid_mesh(depth[:1, :1], intrinsics, normal[:1, :1])
    with pytest.raises(ValueError, match="stride"):
        grid_mesh(depth, intrinsics, normal, stride=0)


def test_room_cloud_keeps_planes_colours_and_normals(room):
    cloud = point_cloud(room.depth, room.intrinsics, room.normal, room.image, room.mask)
    ply = read_ply(write_ply(cloud))
    position = np.stack([ply["x"], ply["y"], ply["z"]], axis=1)
    normal = np.stack([ply["nx"], ply["ny"], ply["nz"]], axis=1)
    check_planes(position, normal)
    assert (position[:, 2] < 0).all()
    assert ((position * normal).sum(1) < 0).all(), "normals look back at the camera"
    # project back: the colour is that of the pixel the point falls on
    height, width = room.depth.shape
    k = room.intrinsics.numpy()
    u = (-position[:, 0] / position[:, 2] * k[0, 0] + k[0, 2]) * width
    v = (position[:, 1] / position[:, 2] * k[1, 1] + k[1, 2]) * height
    picture = room.image.numpy()[np.floor(v).astype(int), np.floor(u).astype(int)]
    color = np.stack([ply["red"], ply["green"], ply["blue"]], axis=1)
    assert np.abs(color / 255 - picture).max() <= 0.5 / 255 + 1e-6


def test_cloud_leaves_out_edges_and_doubt():
    depth, intrinsics, normal = two_walls(2.0, 3.0)
    image = torch.rand(32, 32, 3)
    assert len(point_cloud(depth, intrinsics, normal, image, edge=0.0).points) == 32 * 32
    assert len(point_cloud(depth, intrinsics, normal, image).points) == 32 * 30
    confidence = torch.ones_like(depth)
    confidence[:16] = 0.2
    some = point_cloud(depth, intrinsics, normal, image, edge=0.0, confidence=confidence, min_confidence=0.5)
    assert len(some.points) == 16 * 32
    with pytest.raises(ValueError, match="no point"):
        point_cloud(depth, intrinsics, normal, image, confidence=confidence * 0, min_confidence=0.5)


def rotate(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q v q* from the definition of the quaternion product."""
    w, u = q[:, :1], q[:, 1:]
    t = 2 * torch.linalg.cross(u, v)
    return v + w * t + torch.linalg.cross(u, t)


def test_surfels_lie_in_the_surface(room):
    cloud = point_cloud(room.depth, room.intrinsics, room.normal, room.image, room.mask, stride=4)
    splats = surfels(cloud)
    count = len(cloud.points)
    third = rotate(splats.rotations, torch.tensor([[0.0, 0.0, 1.0]]).expand(count, 3))
    assert torch.allclose(third, cloud.normals, atol=1e-5), "the thin axis is the normal"
    assert (splats.scales.argmin(-1) == 2).all()
    first = rotate(splats.rotations, torch.tensor([[1.0, 0.0, 0.0]]).expand(count, 3))
    # seen from the camera every disc is as wide in its leaning direction as across, up to the limit for steep
    # ones
    ray = torch.nn.functional.normalize(cloud.points, dim=-1)
    seen = (first - (first * ray).sum(-1, keepdim=True) * ray).norm(dim=-1) * splats.scales[:, 0]
    cosine = -(ray * cloud.normals).sum(-1)
    ordinary = cosine > 0.11
    assert torch.allclose(seen[ordinary], splats.scales[ordinary, 1], rtol=1e-3)
    assert torch.allclose(splats.sh[:, 0] * 0.28209479 + 0.5, cloud.colors, atol=1e-5)


def test_quaternions_of_any_rotation():
    generator = torch.Generator().manual_seed(5)
    q = torch.nn.functional.normalize(torch.randn(500, 4, generator=generator), dim=-1)
    q[:4] = torch.eye(4)  # identity and half turns, where naive formulas divide by zero
    basis = torch.eye(3)
    matrix = torch.stack([rotate(q, basis[i].expand(500, 3)) for i in range(3)], dim=-1)
    found = quaternion_from_matrix(matrix)
    same = (found * q).sum(-1).abs()
    assert same.min() > 1 - 1e-5
