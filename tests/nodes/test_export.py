"""Saved files: what is in them, where they go, what they never do."""

from __future__ import annotations

import os
from datetime import datetime

import numpy as np
import pytest
import torch

from tests.harness.inprocess import pack_module, run_node

H, W = 12, 20


@pytest.fixture
def geometry():
    generator = torch.Generator().manual_seed(1)
    normal = torch.nn.functional.normalize(torch.randn(2, H, W, 3, generator=generator), dim=-1)
    return {
        "log_depth": torch.rand(2, H, W, generator=generator) * 2 - 1,
        "normal": normal,
        "mask": torch.rand(2, H, W, generator=generator) > 0.3,
        "image": torch.rand(2, H, W, 3, generator=generator),
        "log_range": torch.tensor([1.0, 2.0]),
        "log_near": torch.tensor([0.0, 0.5]),
        "metric": True,
        "depth": torch.rand(2, H, W, generator=generator) + 0.5,
        "intrinsics": torch.eye(3).expand(2, 3, 3).clone(),
        "confidence": torch.rand(2, H, W, generator=generator),
    }


@pytest.fixture
def output(tmp_path):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


def test_npz_holds_every_key(geometry, output):
    node = pack_module("nodes.export").FE2ESaveNPZ
    (out,) = run_node(node, geometry=geometry, filename_prefix="sub/%width%x%height%")
    assert out is geometry
    path = output / "sub" / f"{W}x{H}_00001_.npz"
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(geometry)
        for key, value in geometry.items():
            assert np.array_equal(archive[key], np.asarray(value)), key
    back = pack_module("fe2e_core.npz").read_npz(path)
    assert back["metric"] is True
    assert all(torch.equal(back[key], value) for key, value in geometry.items() if key != "metric")


def test_nothing_is_overwritten_and_nothing_is_left_behind(geometry, output):
    node = pack_module("nodes.export").FE2ESaveNPZ
    for _ in range(3):
        run_node(node, geometry=geometry, filename_prefix="a", include_image=False)
    assert sorted(os.listdir(output)) == ["a_00001_.npz", "a_00002_.npz", "a_00003_.npz"]
    first = (output / "a_00001_.npz").read_bytes()
    assert first == (output / "a_00003_.npz").read_bytes(), "same geometry, same bytes"
    with pytest.raises(ValueError, match="geometry"):
        run_node(node, geometry={}, filename_prefix="b")
    assert len(os.listdir(output)) == 3


@pytest.mark.parametrize("prefix", ["../out", "a/../../b", "/tmp/x", "..\\b", "", "  ", "folder/", "C:\\x", "a/" + "深" * 70])
def test_names_stay_inside(geometry, output, prefix):
    node = pack_module("nodes.export").FE2ESaveNPZ
    with pytest.raises(ValueError, match="filename_prefix"):
        run_node(node, geometry=geometry, filename_prefix=prefix)
    assert os.listdir(output) == []


def test_dates_are_written_as_the_interface_writes_them(geometry, output):
    """The interface expands %date:...% for its own nodes only."""
    node = pack_module("nodes.export").FE2ESaveNPZ
    run_node(node, geometry=geometry, filename_prefix="%date:yyyy-MM-dd%/%date:d.M.yy%_x")
    now = datetime.now()
    names = [path.relative_to(output).as_posix() for path in output.rglob("*.npz")]
    assert names == [f"{now:%Y-%m-%d}/{now.day}.{now.month}.{now:%y}_x_00001_.npz"]
    with pytest.raises(ValueError, match="no colon"):
        run_node(node, geometry=geometry, filename_prefix="%date:hh:mm%")


def test_a_failed_write_leaves_nothing(output):
    write_new = pack_module("fe2e_core.files").write_new

    def fail(path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_new(output / "x.npz", fail)
    (output / "y.npz").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"y\.npz"):
        write_new(output / "y.npz", lambda path: None)
    assert os.listdir(output) == ["y.npz"]
    assert (output / "y.npz").read_bytes() == b"old"


def test_wrong_archives(output):
    read_npz = pack_module("fe2e_core.npz").read_npz
    with pytest.raises(FileNotFoundError, match="none"):
        read_npz(output / "none.npz")
    (output / "bad.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(ValueError, match="archive"):
        read_npz(output / "bad.npz")
    np.save(output / "single.npy", np.zeros(3))
    with pytest.raises(ValueError, match="archive"):
        read_npz(output / "single.npy")
    np.savez(output / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="log_depth"):
        read_npz(output / "other.npz")


@pytest.mark.parametrize("preset", ["FE2E (OpenCV axes, metres)", "Blender", "Nuke", "Unreal"])
def test_exr_out_and_in(geometry, output, preset):
    module = pack_module("nodes.export")
    (out,) = run_node(module.FE2ESaveEXR, geometry=geometry, preset=preset, filename_prefix="FE2E/g")
    assert out is geometry
    assert sorted(os.listdir(output / "FE2E")) == ["g_00001_.exr", "g_00002_.exr"], "one file per picture"
    assert "FE2E/g_00002_.exr [output]" in module._exr_files()
    (back,) = run_node(module.FE2ELoadEXR, file="FE2E/g_00002_.exr [output]")
    for key in ("log_depth", "normal", "mask", "confidence", "intrinsics"):
        assert torch.equal(back[key][0], geometry[key][1]), key
    assert torch.allclose(back["depth"][0], geometry["depth"][1], rtol=1e-6)


def test_exr_of_a_relative_geometry_uses_what_is_given(geometry, output):
    module = pack_module("nodes.export")
    bare = {key: geometry[key] for key in ("log_depth", "normal", "mask", "image")}
    run_node(module.FE2ESaveEXR, geometry=bare, filename_prefix="r", fov=90.0, far_near_ratio=4.0)
    (back,) = run_node(module.FE2ELoadEXR, file="r_00001_.exr [output]")
    assert back["metric"] is False
    assert back["intrinsics"][0, 0, 0].item() == pytest.approx(0.5)
    assert torch.allclose(back["depth"], 4.0 ** ((bare["log_depth"][:1] + 1) / 2), rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "../x.exr [output]", "(no .exr file in the input folder)"]
)
def test_loading_stays_inside(output, name):
    module = pack_module("nodes.export")
    with pytest.raises(ValueError, match="file"):
        run_node(module.FE2ELoadEXR, file=name)


def test_png16(geometry, output):
    import cv2

    module = pack_module("nodes.export")
    picture = geometry["image"]
    run_node(module.FE2ESavePNG16, image=picture, filename_prefix="p")
    assert sorted(os.listdir(output)) == ["p_00001_.png", "p_00002_.png"]
    seen = cv2.imread(str(output / "p_00002_.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert seen.dtype == np.uint16
    assert np.abs(seen / 65535 - picture[1].numpy()).max() < 1e-5
    metres = geometry["depth"].unsqueeze(-1).expand(-1, -1, -1, 3)
    run_node(module.FE2ESavePNG16, image=metres, filename_prefix="mm", values=module._MILLIMETRES)
    seen = cv2.imread(str(output / "mm_00001_.png"), cv2.IMREAD_UNCHANGED)
    assert seen.shape == (H, W), "grey"
    assert np.abs(seen / 1000 - geometry["depth"][0].numpy()).max() <= 0.0005 + 1e-6


def test_a_png_does_not_swallow_raw_values(geometry, output, caplog):
    node = pack_module("nodes.export").FE2ESavePNG16
    raw = geometry["log_depth"].unsqueeze(-1).expand(-1, -1, -1, 3)
    with pytest.raises(ValueError, match="outside 0 to 1"):
        run_node(node, image=1.5 + raw, filename_prefix="raw")
    assert os.listdir(output) == []
    few = geometry["image"].clone()
    few[:, :2] = 1.2
    run_node(node, image=few, filename_prefix="few")
    assert "are cut off" in caplog.text
    assert len(os.listdir(output)) == len(few)
