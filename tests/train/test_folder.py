"""Plain folders with a description: the formats, kinds of depth and conventions of normals lead to the same
frame.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
import torch

from fe2e_core.geometry import NORMAL_CONVENTIONS, pixel_rays
from train.data.folder import Folder, FolderConfig
from train.data.frame import BadFrame
from train.scenes import render_scene

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def scene():
    return render_scene(3, HEIGHT, WIDTH)


def describe(root: Path, *lines: str) -> Folder:
    (root / "dataset.toml").write_text("\n".join(lines))
    return Folder(FolderConfig(str(root), HEIGHT, WIDTH), "mine")


def write_picture(path: Path, scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), (scene.image.numpy()[..., ::-1] * 255).round().astype(np.uint8))


def write_exr(path: Path, channels: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path))


def camera(scene) -> str:
    k = scene.intrinsics
    return f"camera = [{float(k[0, 0])}, {float(k[1, 1])}, 0.5, 0.5]"


def check(frame, scene, depth_tolerance: float, degrees: float) -> None:
    both = frame.valid & scene.mask
    assert int(both.sum()) > 0.99 * int(scene.mask.sum())
    torch.testing.assert_close(frame.depth[both], scene.depth[both], rtol=depth_tolerance, atol=0)
    known = frame.normal_valid & scene.mask
    cosine = (frame.normal * scene.normal).sum(-1)[known].clamp(-1, 1)
    assert float(torch.rad2deg(torch.acos(cosine)).max()) < degrees
    torch.testing.assert_close(frame.image, scene.image, atol=1 / 255, rtol=0)
    torch.testing.assert_close(frame.intrinsics, scene.intrinsics)


@pytest.mark.parametrize("convention", list(NORMAL_CONVENTIONS))
def test_png16_depth_and_normals_in_every_convention(tmp_path, scene, convention):
    write_picture(tmp_path / "rgb/a/1.png", scene)
    for folder in ("depth/a", "normal/a"):
        (tmp_path / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "depth/a/1.png"), (scene.depth.numpy() * 2000).round().astype(np.uint16))
    signs = np.array(NORMAL_CONVENTIONS[convention])
    colours = ((scene.normal.numpy() * signs + 1) / 2 * 65535).round().astype(np.uint16)
    cv2.imwrite(str(tmp_path / "normal/a/1.png"), colours[..., ::-1])
    data = describe(tmp_path, 'image = "rgb/{name}.png"', 'depth = "depth/{name}.png"', "depth_scale = 0.0005",
                    'normal = "normal/{name}.png"', f'normal_convention = "{convention}"', camera(scene))  # fmt: skip
    assert data.length == 1
    frame = data.read(0)
    assert frame.name == "mine/a/1"
    check(frame, scene, 1e-3, 0.1)


def test_exr_distance_normals_and_mask(tmp_path, scene):
    write_picture(tmp_path / "x_1.png", scene)
    rays = pixel_rays(HEIGHT, WIDTH, scene.intrinsics)
    distance = (scene.depth * rays.norm(dim=-1)).numpy().astype(np.float32)
    write_exr(tmp_path / "d_1.exr", {"Z": distance})
    write_exr(
        tmp_path / "n_1.exr",
        {"RGB": np.ascontiguousarray(scene.normal.numpy() * [1, -1, -1]).astype(np.float32)},
    )
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, :10] = 0
    cv2.imwrite(str(tmp_path / "m_1.png"), mask)
    data = describe(tmp_path, 'image = "x_{name}.png"', 'depth = "d_{name}.exr"', 'depth_kind = "distance"',
                    'normal = "n_{name}.exr"', 'mask = "m_{name}.png"', camera(scene))  # fmt: skip
    frame = data.read(0)
    assert not frame.valid[:, :10].any()
    assert not frame.normal_valid[:, :10].any()
    torch.testing.assert_close(frame.depth[frame.valid], scene.depth[frame.valid], rtol=1e-5, atol=0)
    assert torch.equal(frame.valid[:, 10:], scene.mask[:, 10:])


def test_npy_depth_without_normals_derives_them(tmp_path, scene):
    write_picture(tmp_path / "1.png", scene)
    np.save(tmp_path / "1.npy", scene.depth.numpy())
    data = describe(tmp_path, 'image = "{name}.png"', 'depth = "{name}.npy"', camera(scene))
    frame = data.read(0)
    known = frame.normal_valid & scene.mask
    angle = torch.rad2deg(torch.acos((frame.normal * scene.normal).sum(-1)[known].clamp(-1, 1)))
    assert int(known.sum()) > 0.9 * int(scene.mask.sum())
    assert float(angle.median()) < 0.5


def test_unusable_files_are_named(tmp_path, scene):
    write_picture(tmp_path / "1.png", scene)
    lines = ('image = "{name}.png"', 'depth = "{name}.npy"', "fov_x = 60.0")
    data = describe(tmp_path, *lines)
    with pytest.raises(BadFrame, match=r"1\.npy"):
        data.read(0)
    np.save(tmp_path / "1.npy", np.ones((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(BadFrame, match="8 bits are too few"):
        data.read(0)
    np.save(tmp_path / "1.npy", np.ones((HEIGHT, WIDTH - 1), np.float32))
    with pytest.raises(BadFrame, match="expected one size"):
        data.read(0)
    np.save(tmp_path / "1.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(BadFrame, match=r"1\.npy"):
        data.read(0)
    with pytest.raises(ValueError, match=r"dataset\.toml: unknown key 'imgae'"):
        describe(tmp_path, 'imgae = "x"')
    with pytest.raises(ValueError, match="'depth' is missing"):
        describe(tmp_path, 'image = "{name}.png"')
    with pytest.raises(ValueError, match="either fov_x"):
        describe(tmp_path, *lines[:2])
    with pytest.raises(ValueError, match="normal_convention"):
        describe(tmp_path, *lines, 'normal_convention = "mine"')
    with pytest.raises(FileNotFoundError, match="no picture matches"):
        describe(tmp_path, 'image = "{name}.jpg"', *lines[1:])
