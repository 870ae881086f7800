"""The Virtual KITTI reader against a miniature dataset with closed-form geometry."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fe2e_core.geometry import pixel_rays
from tests.train.miniature import Truth, angle_degrees, pinhole_rays, plane_and_sphere, write_vkitti_frame
from train.data.derived_normals import derive_normals
from train.data.frame import BadFrame
from train.data.vkitti import VirtualKitti, VirtualKittiConfig

HEIGHT, WIDTH = 375, 1242
RAYS = pinhole_rays(HEIGHT, WIDTH, 725.0087, 725.0087, 620.5, 187.0)


def nearer(a: Truth, b: Truth) -> Truth:
    """Both scenes in one: what stands in front is seen."""
    first = np.where(a.sky, np.inf, a.depth) < np.where(b.sky, np.inf, b.depth)
    sky = a.sky & b.sky

    def chosen(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(first if x.ndim == 2 else first[..., None], x, y)

    return Truth(chosen(a.depth, b.depth), chosen(a.normal, b.normal), chosen(a.points, b.points), sky,
                 chosen(a.sphere, b.sphere) & ~sky)  # fmt: skip


def scene(normal: tuple, offset: float, centre: tuple = (0, 0, -50), radius: float = 1.0) -> Truth:
    return plane_and_sphere(RAYS, np.array(normal), offset, np.array(centre), radius)


SCENES = {
    # a road 1.6 m below the camera with a sphere on it, a slanted wall, a wall that faces the camera
    "road": scene((0.0, 1.0, 0.0), 1.6, (2.0, 0.0, 12.0), 1.6),
    "slanted": scene((-0.8, 0.1, 1.0), 9.0, (-2.0, 0.5, 8.0), 1.5),
    "facing": scene((0.0, 0.0, 1.0), 25.0, (0.0, 0.0, 15.0), 3.0),
    # creases: a wall on the road and a sphere half in it; two walls that meet at 120 degrees, whose depth rises by
    # half a step from column to column for a long way, so that rounding looks like another plane
    "corner": nearer(scene((0.0, 1.0, 0.0), 1.6, (1.0, 1.3, 9.0), 1.3), scene((0.0, 0.0, 1.0), 20.0)),
    "walls": nearer(scene((0.5, 0.0, 0.75**0.5), 10.5423), scene((-0.5, 0.0, 0.75**0.5), 10.2423)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("vkitti")
    for number, truth in enumerate(SCENES.values()):
        write_vkitti_frame(root, "Scene02", "clone", number, truth.depth, truth.sky)
    write_vkitti_frame(root, "Scene02", "fog", 0, SCENES["road"].depth, SCENES["road"].sky)
    write_vkitti_frame(root, "Scene01", "clone", 0, SCENES["road"].depth, SCENES["road"].sky)
    return root


def crop(array: np.ndarray) -> np.ndarray:
    return array[HEIGHT - 352 :, 13 : 13 + 1216]


@pytest.mark.parametrize("name", list(SCENES))
def test_depth_and_derived_normals_are_those_of_the_scene(root, name):
    dataset = VirtualKitti(VirtualKittiConfig(str(root)))
    assert dataset.length == len(SCENES), "fog and Scene01 are not part of the training set"
    frame = dataset.read(list(SCENES).index(name))
    truth = SCENES[name]
    depth, normal, sky = crop(truth.depth), crop(truth.normal), crop(truth.sky)
    valid = frame.valid.numpy()
    assert frame.size == (352, 1216)
    np.testing.assert_array_equal(valid, ~sky & (np.round(depth, 2) <= 80))
    difference = np.abs(frame.depth.numpy() - depth)[valid]
    # half the stored centimetre, and what float32 rounds
    assert difference.max() < 0.005 + 1e-5
    error = (difference / depth[valid]).max()
    assert error < 1e-3

    found = frame.normal_valid.numpy()
    angle = angle_degrees(frame.normal.numpy(), normal)
    # nearer to the sphere's rim or the sky than this, windows would see two surfaces; creases are no such edges
    surface = (crop(truth.sphere) + 2 * sky).astype(np.uint8)
    inner = valid & (cv2.morphologyEx(surface, cv2.MORPH_GRADIENT, np.ones((17, 17), np.uint8)) == 0)
    assert inner.sum() > 0.9 * valid.sum()
    kept, all_kept = found[inner].mean(), found.sum() / valid.sum()
    print(f"{name}: depth {error:.1e}; normals mean {angle[found].mean():.3f}, at most {angle[found].max():.2f} degrees; "
          f"{kept:.1%} of the pixels away from edges, {all_kept:.1%} of all")  # fmt: skip
    assert angle[found].max() < 2
    assert angle[found].mean() < 0.2
    assert kept > 0.92
    assert all_kept > 0.89


def test_the_camera_belongs_to_the_crop(root):
    frame = VirtualKitti(VirtualKittiConfig(str(root))).read(0)
    rays = pixel_rays(352, 1216, frame.intrinsics).numpy()
    np.testing.assert_allclose(rays, crop(RAYS), atol=1e-6)


def test_conditions_and_scenes_can_be_chosen(root):
    assert VirtualKitti(VirtualKittiConfig(str(root), conditions=("fog",))).length == 1
    assert VirtualKitti(VirtualKittiConfig(str(root), scenes=("Scene01", "Scene02"))).length == len(SCENES) + 1
    with pytest.raises(FileNotFoundError, match="Unpack"):
        VirtualKitti(VirtualKittiConfig(str(root), cameras=(1,)))


def test_bad_files_are_named(root, tmp_path):
    truth = SCENES["facing"]
    write_vkitti_frame(tmp_path, "Scene02", "clone", 0, truth.depth, truth.sky)
    dataset = VirtualKitti(VirtualKittiConfig(str(tmp_path)))
    depth_file = Path(dataset.files(0)[1])
    cv2.imwrite(str(depth_file), np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(BadFrame, match=r"depth_00000\.png: found uint8"):
        dataset.read(0)
    depth_file.write_bytes(b"no picture")
    with pytest.raises(BadFrame, match="10 bytes that are no picture"):
        dataset.read(0)
    depth_file.unlink()
    with pytest.raises(BadFrame, match="no such file"):
        dataset.read(0)


def test_exact_depth_gives_exact_normals_of_planes():
    rays = pinhole_rays(40, 60, 50, 50, 29.5, 19.5)
    truth = plane_and_sphere(rays, np.array([0.2, 0.1, 1.0]), 3.0, np.array([0, 0, -50.0]), 1.0)
    k = np.array([[50 / 60, 0, 0.5], [0, 50 / 40, 0.5], [0, 0, 1]])
    normal, found = derive_normals(truth.depth, ~truth.sky, k)
    assert found.all()
    assert angle_degrees(normal, truth.normal).max() < 0.01


def test_relief_that_no_window_can_resolve_is_not_vouched_for():
    """A wall, smooth on the left; on the right with ripples of two steps, over which a wide window is flat and wrong."""
    height, width, focal = 120, 320, 300.0
    rays = pinhole_rays(height, width, focal, focal, width / 2 - 0.5, height / 2 - 0.5)
    rippled = np.arange(width) >= width // 2
    phase = 2 * np.pi * np.arange(width) / 12
    depth = np.broadcast_to(5 + 0.02 * rippled * np.sin(phase), (height, width))
    slope = 0.02 * rippled * np.cos(phase) * 2 * np.pi / 12
    along = slope[:, None] * rays + depth[..., None] * np.array([1 / focal, 0, 0])
    down = depth[..., None] * np.array([0, 1 / focal, 0])
    truth = -np.cross(along, down)
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    k = np.array([[focal / width, 0, 0.5], [0, focal / height, 0.5], [0, 0, 1]])
    normal, found = derive_normals(np.round(depth, 2), np.ones((height, width), bool), k, step=0.01)
    assert angle_degrees(truth, np.array([0, 0, -1.0]))[:, rippled].mean() > 10
    assert found[:, : width // 2 - 20].mean() > 0.6
    assert angle_degrees(normal, truth)[found].max() < 2
