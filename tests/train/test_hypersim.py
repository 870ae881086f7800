"""The Hypersim reader against a miniature dataset with closed-form geometry."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from fe2e_core.geometry import pixel_rays, points_from_depth
from tests.train.miniature import angle_degrees, plane_and_sphere, write_hypersim_frame, write_hypersim_tables
from train.data.frame import BadFrame, RejectedFrame
from train.data.hypersim import Hypersim, HypersimConfig, tone_map

HEIGHT, WIDTH = 192, 256
TANGENT = np.tan(np.radians(30))
USUAL = np.diag([TANGENT, TANGENT * HEIGHT / WIDTH, -1.0])
TILT = np.radians(8)
#: A wider camera whose lens is shifted, and whose picture plane is tilted about the horizontal axis.
TILTED = np.array([[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]]) @ np.array(
    [[0.7, 0, 0.05], [0, 0.5, -0.08], [0, 0, -1.0]]
)
CAMERAS = {"ai_001_001": USUAL, "ai_002_003": TILTED}


def scene(matrix: np.ndarray):
    """Rays in the published axes, and the scene in OpenCV ones."""
    u = (np.arange(WIDTH) + 0.5) / WIDTH * 2 - 1
    v = 1 - (np.arange(HEIGHT) + 0.5) / HEIGHT * 2
    grid = np.stack([*np.meshgrid(u, v), np.ones((HEIGHT, WIDTH))], axis=-1)
    rays = (grid @ matrix.T) * [1, -1, -1]
    truth = plane_and_sphere(rays, np.array([0.3, -0.4, 1.0]), 4.0, np.array([0.3, 0.2, 2.5]), 0.7)
    assert not truth.sky.any()
    return rays, truth


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hypersim")
    rng = np.random.default_rng(0)
    for name, matrix in CAMERAS.items():
        _, truth = scene(matrix)
        distance = np.linalg.norm(truth.points, axis=-1)
        published = truth.normal * [1, -1, -1]
        published[:, :20] *= -1  # modelled inside out
        published[:, 20:30] *= 3.0
        published[:5, :5] = 0
        entity = np.ones((HEIGHT, WIDTH))
        entity[-2:, :100] = -1  # 0.4 % invalid
        distance[-1, :50] = np.nan
        colour = rng.uniform(0, 4, (HEIGHT, WIDTH, 3))
        write_hypersim_frame(root, name, 7, distance, published, colour, entity)
        entity[-10:] = -1
        write_hypersim_frame(root, name, 8, distance, published, colour, entity)
    rows = [("ai_001_001", 7, True, "train"), ("ai_002_003", 7, True, "train"), ("ai_001_001", 8, True, "train"),
            ("ai_001_001", 9, False, "train"), ("ai_002_003", 8, True, "val"), ("ai_001_001", 10, True, "train")]  # fmt: skip
    write_hypersim_tables(root, rows, CAMERAS)
    return root


def config(root: Path, **changes) -> HypersimConfig:
    return HypersimConfig(str(root), **({"height": HEIGHT, "width": WIDTH} | changes))


@pytest.mark.parametrize("index", [0, 1])
def test_depth_and_normals_are_those_of_the_scene(root, index):
    dataset = Hypersim(config(root))
    frame = dataset.read(index)
    matrix = list(CAMERAS.values())[index]
    _, truth = scene(matrix)
    # the camera's own axes: z perpendicular to the picture plane, x along its rows
    columns = matrix * np.array([[1], [-1], [-1]]) * [1, -1, 1]
    x = columns[:, 0] / np.linalg.norm(columns[:, 0])
    z = np.cross(columns[:, 0], columns[:, 1])
    z = z / np.linalg.norm(z)
    own = np.stack([x, np.cross(z, x), z])
    depth, normal = truth.points @ own[2], truth.normal @ own.T

    valid = frame.valid.numpy()
    assert valid.sum() == HEIGHT * WIDTH - 200
    error = np.abs(frame.depth.numpy() / depth - 1)[valid].max()
    angle = angle_degrees(frame.normal.numpy(), normal)[frame.normal_valid.numpy()].max()
    assert error < 1e-3
    assert angle < 0.5
    assert not frame.normal_valid[:5, :5].any()
    assert frame.normal_valid.sum() == valid.sum() - 25
    points = points_from_depth(frame.depth, frame.intrinsics)[frame.valid].numpy()
    np.testing.assert_allclose(points, (truth.points @ own.T)[valid], atol=2e-3)
    rays = pixel_rays(HEIGHT, WIDTH, frame.intrinsics)
    assert ((frame.normal * rays).sum(-1)[frame.normal_valid] < 0).all()
    print(f"camera {index}: depth {error:.2e} relative, normals {angle:.4f} degrees at most")


def test_the_usual_camera_is_an_ordinary_one(root):
    k = Hypersim(config(root)).read(0).intrinsics
    torch.testing.assert_close(
        k, torch.tensor([[0.8660254, 0, 0.5], [0, 0.8660254 * WIDTH / HEIGHT, 0.5], [0, 0, 1.0]])
    )


def test_split_release_and_filter(root):
    dataset = Hypersim(config(root))
    assert dataset.length == 4
    with pytest.raises(RejectedFrame, match=r"5\.\d%"):
        dataset.read(2)
    with pytest.raises(BadFrame, match=r"frame\.0010\.render_entity_id\.hdf5"):
        dataset.read(3)
    assert Hypersim(config(root, split="val")).length == 1
    assert Hypersim(config(root, max_invalid=0.1)).read(2).valid.sum() == (HEIGHT - 10) * WIDTH
    with pytest.raises(ValueError, match="no released picture"):
        Hypersim(config(root, split="test"))
    with pytest.raises(FileNotFoundError, match="split file"):
        Hypersim(config(root / "nowhere"))


def test_without_camera_file_it_warns(root, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = Hypersim(config(root, camera_file=str(root / "none.csv")))
    assert "60 degree" in caplog.text
    _, truth = scene(USUAL)
    frame = dataset.read(0)
    assert float(np.abs(frame.depth.numpy() / truth.depth - 1)[frame.valid.numpy()].max()) < 1e-3


def test_a_broken_file_is_named(root, tmp_path):
    write_hypersim_tables(tmp_path, [("ai_001_001", 7, True, "train")], CAMERAS)
    folder = tmp_path / "ai_001_001/images/scene_cam_00_geometry_hdf5"
    folder.mkdir(parents=True)
    (folder / "frame.0007.render_entity_id.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n broken")
    with pytest.raises(BadFrame, match=r"frame\.0007\.render_entity_id\.hdf5"):
        Hypersim(config(tmp_path)).read(0)


def test_tone_map_brings_the_brightest_tenth_to_four_fifths():
    linear = np.linspace(0, 10, 101, dtype=np.float32)[:, None, None].repeat(3, -1).repeat(4, 1)
    valid = np.ones(linear.shape[:2], dtype=bool)
    mapped = tone_map(linear, valid)
    assert mapped[90, 0, 0] == pytest.approx(0.8, abs=1e-4)
    assert mapped.max() <= 1
    valid[50:] = False
    assert tone_map(linear, valid)[45, 0, 0] > 0.79
    assert not tone_map(np.zeros_like(linear), valid).any()


def test_smaller_sizes_keep_geometry(root):
    dataset = Hypersim(config(root, height=96, width=96))
    frame = dataset.read(0)
    assert frame.size == (96, 96)
    rays = pixel_rays(96, 96, frame.intrinsics).double().numpy()
    truth = plane_and_sphere(rays, np.array([0.3, -0.4, 1.0]), 4.0, np.array([0.3, 0.2, 2.5]), 0.7)
    error = np.abs(frame.depth.numpy() / truth.depth - 1)[frame.valid.numpy()]
    # nearest pixels lie up to half a pixel away
    assert np.median(error) < 5e-3
