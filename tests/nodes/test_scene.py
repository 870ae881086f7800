"""Calibrate, Confidence, Refine, Anchor and Stabilize through ComfyUI's own node interface."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.core import clips
from tests.core.simulation import eq7_label, plane
from tests.harness.inprocess import pack_module, run_node
from train.scenes import HELD_OUT, render_scene

H, W = 120, 160
SEED = HELD_OUT + 8


@pytest.fixture(scope="module")
def scene():
    return render_scene(SEED, H, W)


@pytest.fixture(scope="module")
def truth(scene):
    """Field of view and log range."""
    return math.degrees(2 * math.atan(0.5 / float(scene.intrinsics[0, 0]))), eq7_label(
        scene.depth, scene.mask
    )[1]


@pytest.fixture
def geometry(scene):
    label, _ = eq7_label(scene.depth, scene.mask)
    return {
        "log_depth": label.clamp(-1, 1)[None],
        "normal": scene.normal[None],
        "mask": scene.mask[None],
        "image": scene.image[None],
    }


@pytest.fixture
def calibrated(geometry):
    return run_node(
        pack_module("nodes.camera").FE2ECalibrate, geometry=geometry, camera={"camera": "estimate"}
    )[0]


def test_calibrate(geometry, truth):
    before = set(geometry)
    out, fov, ratio, determined, report = run_node(
        pack_module("nodes.camera").FE2ECalibrate, geometry=geometry, camera={"camera": "estimate"}
    )
    assert set(geometry) == before, "the input dict is left alone"
    assert fov == pytest.approx(truth[0], abs=1.0)
    assert math.log(ratio) == pytest.approx(truth[1], rel=0.02)
    assert determined is True
    assert "degrees" in report
    assert out["intrinsics"].shape == (1, 3, 3)
    assert out["intrinsics"].dtype == out["depth"].dtype == torch.float32
    assert out["log_range"].shape == out["log_near"].shape == (1,)
    assert torch.equal(out["log_depth"], geometry["log_depth"])
    assert out["metric"] is False


@pytest.mark.parametrize(
    "camera",
    [
        lambda fov: {"camera": "field of view", "fov": fov},
        lambda fov: {
            "camera": "35 mm focal length",
            "focal_length": 43.2666 * W / math.hypot(W, H) * 0.5 / math.tan(math.radians(fov / 2)),
        },
        lambda fov: {"camera": "connected camera"},
    ],
)
def test_a_known_camera(geometry, truth, camera):
    vertical = 2 * math.degrees(math.atan(math.tan(math.radians(truth[0] / 2)) * H / W))
    info = {"fov": vertical, "cameraType": "perspective"}
    _, fov, ratio, *_ = run_node(
        pack_module("nodes.camera").FE2ECalibrate, geometry=geometry, camera=camera(truth[0]), camera_info=info
    )
    assert fov == pytest.approx(truth[0], abs=0.01)
    assert math.log(ratio) == pytest.approx(truth[1], rel=0.02)


def test_a_cropped_picture(geometry, truth):
    """The right half: the optical axis lies on its left edge."""
    crop = {key: value[:, :, W // 2 :] for key, value in geometry.items()}
    node = pack_module("nodes.camera").FE2ECalibrate
    out, fov, _, determined, report = run_node(node, geometry=crop, camera={"camera": "estimate, off centre"})
    assert determined is True
    focal = 2 * 0.5 / math.tan(math.radians(truth[0] / 2))  # in widths of the half
    assert fov == pytest.approx(math.degrees(2 * math.atan(0.5 / focal)), abs=1.5)
    assert float(out["intrinsics"][0, 0, 2]) == pytest.approx(0.0, abs=0.03)
    assert float(out["intrinsics"][0, 1, 2]) == pytest.approx(0.5, abs=0.03)
    assert float(out["intrinsics"][0, 0, 0]) == pytest.approx(focal, rel=0.03)
    assert "optical axis at" in report


def test_a_camera_without_a_view_is_refused(geometry):
    node = pack_module("nodes.camera").FE2ECalibrate
    with pytest.raises(ValueError, match="camera_info"):
        run_node(node, geometry=geometry, camera={"camera": "connected camera"})


def test_a_flat_wall_is_not_guessed(geometry):
    _, normal, mask = plane((0.0, 0.0, -1.0), 60.0, H, W)
    wall = {**geometry, "log_depth": torch.zeros(1, H, W), "normal": normal[None], "mask": mask[None]}
    node = pack_module("nodes.camera").FE2ECalibrate
    out, fov, ratio, determined, report = run_node(node, geometry=wall, camera={"camera": "estimate"})
    assert determined is False
    assert (fov, ratio) == (0.0, 0.0)
    assert "log_range" not in out
    assert "intrinsics" not in out
    assert "undetermined" in report
    assert "focal length" in report, "what the user can do about it"


def test_confidence_clears_the_mask_where_asked(calibrated):
    broken = {**calibrated, "depth": calibrated["depth"].clone()}
    ramp = torch.linspace(-0.3, 0.3, 40)
    broken["depth"][:, 40:80, 60:100] *= torch.exp(ramp)
    node = pack_module("nodes.scene").FE2EConfidence
    out, score, picture = run_node(node, geometry=broken, threshold=0.5)
    assert score.shape == (1, H, W)
    assert picture.shape == (1, H, W, 3)
    assert 0 <= float(score.min())
    assert float(score.max()) <= 1
    assert score[:, 45:75, 65:95].median() < 0.5 < score[:, :, 110:].median()
    assert not (out["mask"] & ~broken["mask"]).any(), "pixels may only be cleared"
    assert not out["mask"][:, 50:70, 70:90].all()


def test_refine_keeps_what_the_network_said(calibrated, geometry):
    node = pack_module("nodes.scene").FE2ERefine
    (out,) = run_node(node, geometry=calibrated)
    assert torch.equal(out["log_depth"], geometry["log_depth"])
    assert not torch.equal(out["depth"], calibrated["depth"])
    assert ((out["depth"] / calibrated["depth"]) - 1)[calibrated["mask"]].abs().median() < 0.02
    (same,) = run_node(node, geometry=calibrated, strength=0.0)
    torch.testing.assert_close(same["depth"], calibrated["depth"])


def test_refine_listens_to_the_confidence_unless_told_not_to(calibrated):
    node = pack_module("nodes.scene").FE2ERefine
    y, x = torch.meshgrid(torch.arange(float(H)), torch.arange(float(W)), indexing="ij")
    hill = 0.1 * torch.exp(-((x - 50) ** 2 + (y - 50) ** 2) / (2 * 10**2))
    spot = hill > 0.01
    spoiled = {**calibrated, "depth": calibrated["depth"] * hill.exp()}
    doubted = {**spoiled, "confidence": torch.where(spot, 0.0, 1.0)[None]}
    (plain,) = run_node(node, geometry=spoiled)
    (deaf,) = run_node(node, geometry=doubted, use_confidence=False)
    (heard,) = run_node(node, geometry=doubted)
    assert torch.equal(deaf["depth"], plain["depth"])
    before, after = (
        torch.log(out["depth"] / calibrated["depth"])[0][spot & calibrated["mask"][0]].abs().mean() for out in (deaf, heard)
    )
    assert after < 0.6 * before


def test_what_needs_a_camera_says_so(geometry):
    module = pack_module("nodes.scene")
    for node in (module.FE2EConfidence, module.FE2ERefine):
        with pytest.raises(ValueError, match="Calibrate Camera"):
            run_node(node, geometry=geometry)


def anchored(geometry, anchor, **inputs):
    return run_node(pack_module("nodes.anchor").FE2EAnchorDepth, geometry=geometry, anchor=anchor, **inputs)


def inside(scene, geometry):
    """Pixels whose label is not cut off."""
    return scene.mask & (geometry["log_depth"][0].abs() < 1)


def miss(out, scene, geometry):
    return ((out["depth"][0] / scene.depth) - 1)[inside(scene, geometry)].abs()


def test_sparse_points_without_calibration(geometry, scene):
    rows, cols = torch.where(inside(scene, geometry))
    pick = torch.linspace(0, len(rows) - 1, 30).long()
    lines = []
    for i, (row, col) in enumerate(zip(rows[pick].tolist(), cols[pick].tolist(), strict=True)):
        metres = float(scene.depth[row, col]) * (4.0 if i % 4 == 0 else 1.0)
        lines.append(f"{(col + 0.5) / W}, {(row + 0.5) / H}, {metres}")
    out, picture, report = anchored(geometry, {"anchor": "sparse points", "points": "\n".join(lines)})
    assert miss(out, scene, geometry).median() < 0.02
    assert out["metric"] is True
    assert torch.equal(picture[..., 1], out["depth"])
    assert "points agree" in report
    log_depth = out["log_range"][0] * (out["log_depth"][0] + 1) / 2 + out["log_near"][0]
    torch.testing.assert_close(log_depth.exp(), out["depth"][0])


def test_one_distance_scales_the_calibrated_shape(calibrated, scene, geometry):
    row, col = 60, 80
    assert inside(scene, geometry)[row, col]
    ray = torch.tensor(
        [
            ((col + 0.5) / W - 0.5) / scene.intrinsics[0, 0],
            ((row + 0.5) / H - 0.5) / scene.intrinsics[1, 1],
            1.0,
        ]
    )
    anchor = {
        "anchor": "one distance",
        "x1": (col + 0.5) / W,
        "y1": (row + 0.5) / H,
        "distance": float(scene.depth[row, col] * ray.norm()),
    }
    out, _, report = anchored(calibrated, anchor)
    assert miss(out, scene, geometry).median() < 0.03
    assert "unit" in report
    log_depth = out["log_range"][0] * (out["log_depth"][0] + 1) / 2 + out["log_near"][0]
    torch.testing.assert_close(log_depth.exp(), out["depth"][0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["reference", "moge_geometry", "da3_geometry"])
def test_another_depth(geometry, scene, kind):
    metres = torch.where(scene.mask, scene.depth, torch.inf)[None]
    given = {
        "reference": scene.depth[None, ..., None].expand(1, H, W, 3),
        "moge_geometry": {"depth": metres, "mask": scene.mask[None]},
        "da3_geometry": {"depth": scene.depth[None], "sky": (~scene.mask).float()[None]},
    }[kind]
    out, *_ = anchored(geometry, {"anchor": "another depth"}, **{kind: given})
    assert miss(out, scene, geometry).median() < 0.01


@pytest.mark.parametrize("kind", ["moge_geometry", "da3_geometry"])
def test_what_another_depth_calls_unknown_does_not_count(geometry, scene, kind):
    """Most of the picture has plausible metres there that are three times too far, and says that they are not meant."""
    unknown = ~scene.mask
    unknown[:, : int(0.65 * W)] = True
    metres = torch.where(scene.mask, scene.depth, 2.0)
    metres = torch.where(unknown, 3 * metres, metres)[None]
    given = {
        "moge_geometry": {"depth": metres, "mask": ~unknown[None]},
        "da3_geometry": {"depth": metres, "sky": unknown.float()[None]},
    }[kind]
    out, _, report = anchored(geometry, {"anchor": "another depth"}, **{kind: given})
    assert miss(out, scene, geometry).median() < 0.01
    assert f"of {int((inside(scene, geometry) & ~unknown).sum())} given" in report
    said = {key: value for key, value in given.items() if key == "depth"}
    misled, *_ = anchored(geometry, {"anchor": "another depth"}, **{kind: said})
    assert miss(misled, scene, geometry).median() > 0.5, "the rest is no outlier that the fit would find by itself"


def test_near_and_far_and_bad_input(geometry):
    out, *_ = anchored(geometry, {"anchor": "near and far", "near": 0.5, "far": 4.0})
    assert float(out["log_range"][0]) == pytest.approx(math.log(8.0))
    assert float(out["log_near"][0]) == pytest.approx(math.log(0.5))
    with pytest.raises(ValueError, match="near < far"):
        anchored(geometry, {"anchor": "near and far", "near": 4.0, "far": 0.5})
    with pytest.raises(ValueError, match="exactly one"):
        anchored(geometry, {"anchor": "another depth"})
    with pytest.raises(ValueError, match="line 2"):
        anchored(geometry, {"anchor": "sparse points", "points": "0.5 0.5 1\nhere 2 3"})
    with pytest.raises(ValueError, match="no calibrated range"):
        anchored(geometry, {"anchor": "near and far", "near": 1.0, "far": 2.0}, range="keep")
    with pytest.raises(ValueError, match="batch_index"):
        anchored(geometry, {"anchor": "near and far", "near": 1.0, "far": 2.0}, batch_index=3)


@pytest.fixture(scope="module")
def walked():
    """A walk through a drawn room with textures, past which a ball comes."""
    return clips.walk(HELD_OUT + 7, 6, 72, 96)


def clip_geometry(walked, frames):
    return {
        "log_depth": walked.labels(0.0)[:frames].clamp(-1, 1),
        "normal": torch.tensor([0.0, 0.0, -1.0]).expand(frames, 72, 96, 3),
        "mask": walked.mask[:frames],
        "image": walked.image[:frames],
    }


def test_video(walked):
    frames = 6
    clip = clip_geometry(walked, frames)
    node = pack_module("nodes.video").FE2EStabilizeVideo
    out, state, report = run_node(node, geometry=clip)
    assert out["depth"].shape == (frames, 72, 96)
    assert len(json.loads(state)["frames"]) == frames
    assert "1 shot (" in report
    blind, *_ = run_node(node, geometry=clip, use_picture=False)
    solved, without_pictures, alone = (
        clips.spread_of_fixed_points(walked, x)
        for x in (out["depth"].log(), blind["depth"].log(), clips.alone(clip["log_depth"], walked))
    )
    assert solved < alone / 50
    assert solved < 0.8 * without_pictures, "the pictures say how the camera moves"
    again, *_ = run_node(node, geometry=clip, mode="reuse saved scales", state=state)
    torch.testing.assert_close(again["depth"], out["depth"])
    more, longer, _ = run_node(node, geometry=clip, mode="continue a saved clip", state=state)
    assert len(json.loads(longer)["frames"]) == 2 * frames
    assert abs(float(torch.log(more["depth"][0] / out["depth"][0]).median())) < 0.1
    with pytest.raises(ValueError, match="state"):
        run_node(node, geometry=clip, mode="reuse saved scales")


def test_the_scales_of_a_clip_go_through_a_file(walked, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    for name in ("output", "input"):
        (tmp_path / name).mkdir()
    clip = clip_geometry(walked, 2)
    node = pack_module("nodes.video").FE2EStabilizeVideo
    out, state, report = run_node(node, geometry=clip, filename_prefix="FE2E/shot")
    name = report.rsplit(" ", 1)[1]
    assert (tmp_path / "output" / name).read_text() == state
    again, *_ = run_node(node, geometry=clip, mode="reuse saved scales", state=name)
    assert torch.equal(again["depth"], out["depth"])
    *_, second = run_node(node, geometry=clip, filename_prefix="FE2E/shot")
    assert second.rsplit(" ", 1)[1] != name, "nothing is overwritten"
    (tmp_path / "input" / "other.json").write_bytes(b"\xff\xfe")
    (tmp_path / "secret.json").write_text(state)
    for wrong, error in (("no.json", FileNotFoundError), ("n" * 300, FileNotFoundError), ("../secret.json", ValueError), ("other.json", ValueError)):
        with pytest.raises(error, match="state"):
            run_node(node, geometry=clip, mode="reuse saved scales", state=wrong)
