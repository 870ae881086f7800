"""What was only assumed stays known as assumed: through decoding, clips and files, up to the metres."""

from __future__ import annotations

import math

import pytest
import torch

from fe2e_core.assumptions import with_depth_and_camera
from fe2e_core.exr import read_exr, write_exr
from fe2e_core.npz import read_npz, write_npz
from tests.core.simulation import eq7_label
from tests.harness.inprocess import pack_module, run_node
from train.scenes import HELD_OUT, render_scene

H, W = 96, 128
A, B = (0.3, 0.8), (0.6, 0.3)


@pytest.fixture(scope="module")
def scene():
    return render_scene(HELD_OUT + 8, H, W)


@pytest.fixture
def geometry(scene):
    """As Estimate leaves it: nothing known."""
    label, _ = eq7_label(scene.depth, scene.mask)
    return {
        "log_depth": label.clamp(-1, 1)[None], "normal": scene.normal[None], "mask": scene.mask[None], "image": scene.image[None]
    }  # fmt: skip


def at(depth, place):
    return float(depth.reshape(H, W)[int(place[1] * H), int(place[0] * W)])


def decoded(geometry, **inputs):
    module = pack_module("nodes.depth")
    given = {"preset": module.CUSTOM, "range": "what the geometry knows", "far_near_ratio": 10.0, "near": 1.0, "far": 10.0,
             "normalize": "each image", "mapping": "disparity", "white": module.NEAR_WHITE, "clip_low": 0.1, "clip_high": 99.9}  # fmt: skip
    return run_node(module.FE2ELogDepthDecode, geometry=geometry, **{**given, **inputs})[2]


def stabilized(geometry):
    return run_node(pack_module("nodes.video").FE2EStabilizeVideo, geometry=geometry)[0]


def through_exr(geometry, folder):
    write_exr(folder / "g.exr", with_depth_and_camera(geometry), 0, "Blender")
    return read_exr(folder / "g.exr")


def anchored(geometry, anchor, **inputs):
    return run_node(pack_module("nodes.anchor").FE2EAnchorDepth, geometry=geometry, anchor=anchor, **inputs)


def two_points(scene):
    return {"anchor": "two points", "x1": A[0], "y1": A[1], "depth1": at(scene.depth, A), "x2": B[0], "y2": B[1], "depth2": at(scene.depth, B)}


@pytest.mark.parametrize("way", ["decoded", "stabilized", "exr", "npz"])
def test_two_points_are_met_after_any_step_that_assumes(scene, geometry, tmp_path, way):
    if way == "npz":
        write_npz(tmp_path / "g.npz", decoded(geometry))
        given = read_npz(tmp_path / "g.npz")
    else:
        given = {"decoded": decoded, "stabilized": stabilized, "exr": lambda g: through_exr(g, tmp_path)}[way](geometry)
    assert "log_range" in given["assumed"]
    out, depth, _ = anchored(given, two_points(scene))
    for place in (A, B):
        assert at(depth[..., 0], place) == pytest.approx(at(scene.depth, place), rel=0.03)
    assert "log_range" not in out.get("assumed", ())
    assert "log_range" in given["assumed"], "what came in is left alone"


def test_a_range_that_was_found_is_kept(scene, geometry, tmp_path):
    calibrated = run_node(pack_module("nodes.camera").FE2ECalibrate, geometry=decoded(geometry), camera={"camera": "estimate"})[0]
    assert "assumed" not in calibrated
    assert "assumed" not in through_exr(calibrated, tmp_path)
    assert "assumed" not in stabilized(calibrated)
    wrong = two_points(scene)
    wrong["depth2"] = 2 * wrong["depth2"]
    out, _, report = anchored(calibrated, wrong)
    assert float(out["log_range"][0]) == pytest.approx(float(calibrated["log_range"][0]))
    assert "does not fit" in report
    assert "does not fit" not in anchored(calibrated, two_points(scene))[2]


@pytest.mark.parametrize(
    ("inputs", "assumed"),
    [({}, True), ({"mapping": "relative"}, True), ({"range": "the values given here"}, False), ({"mapping": "metric"}, False)],
)
def test_a_ratio_that_stands_in_is_assumed_and_one_that_is_told_is_not(geometry, inputs, assumed):
    assert ("log_range" in decoded(geometry, **inputs).get("assumed", ())) == assumed


def test_one_point_scales_what_is_assumed_and_says_so(scene, geometry):
    line = f"{A[0]} {A[1]} {at(scene.depth, A)}"
    out, depth, report = anchored(decoded(geometry), {"anchor": "sparse points", "points": line})
    assert at(depth[..., 0], A) == pytest.approx(at(scene.depth, A), rel=0.01)
    assert "only assumed" in report
    assert "log_range" in out["assumed"]


def test_a_length_by_an_assumed_camera_is_doubted(geometry, tmp_path):
    length = {"anchor": "length between two points", "x1": A[0], "y1": A[1], "x2": B[0], "y2": B[1], "length": 1.0}
    report = anchored(through_exr(geometry, tmp_path), length)[2]
    assert "camera is only assumed" in report
    assert "depth range is only assumed" in report
    report = anchored(through_exr({**geometry, "log_range": torch.tensor([math.log(4.0)])}, tmp_path), length)[2]
    assert "depth range is only assumed" not in report


@pytest.mark.parametrize(("node", "name"), [("FE2EToMoGe", "moge_geometry"), ("FE2EToDA3", "da3_geometry")])
def test_depth_without_a_unit_is_no_reference(geometry, node, name):
    (reference,) = run_node(getattr(pack_module("nodes.bridges"), node), geometry=geometry)
    with pytest.raises(ValueError, match=f"{name}: .* no unit"):
        anchored(geometry, {"anchor": "another depth"}, **{name: reference})
    known = anchored(geometry, {"anchor": "near and far", "near": 1.0, "far": 5.0})[0]
    (reference,) = run_node(getattr(pack_module("nodes.bridges"), node), geometry=known)
    out, _, report = anchored(geometry, {"anchor": "another depth"}, **{name: reference})
    torch.testing.assert_close(out["depth"], known["depth"], rtol=1e-3, atol=0)
    assert "taken to be in metres" in report


def test_near_and_far_leave_no_range_to_keep(geometry):
    with pytest.raises(ValueError, match="range: near and far"):
        anchored(decoded(geometry), {"anchor": "near and far", "near": 1.0, "far": 5.0}, range="keep")


@pytest.mark.parametrize("word", ["nan", "inf"])
def test_points_are_finite_numbers(geometry, word):
    with pytest.raises(ValueError, match="line 1"):
        anchored(geometry, {"anchor": "sparse points", "points": f"{word} 0.5 2"})


def test_a_given_camera_is_not_called_nothing(geometry):
    flat = {**geometry, "log_depth": torch.zeros_like(geometry["log_depth"])}
    flat["normal"] = torch.tensor([0.0, 0.0, -1.0]).expand_as(geometry["normal"])
    camera = {"camera": "field of view", "fov": 70.0}
    out, fov, _, determined, report = run_node(pack_module("nodes.camera").FE2ECalibrate, geometry=flat, camera=camera)
    assert not determined
    assert fov == pytest.approx(70.0)
    assert "intrinsics" in out
    assert "camera that was given was added" in report
