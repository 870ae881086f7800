"""Log-Depth Decode and Normal Colorize through ComfyUI's own node interface."""

from __future__ import annotations

import math

import pytest
import torch

from tests.harness.inprocess import pack_module, run_node

H, W = 24, 40


@pytest.fixture
def geometry():
    ramp = torch.linspace(-1, 1, W).expand(2, H, W).clone()
    normal = torch.zeros(2, H, W, 3)
    normal[..., 2] = -1
    mask = torch.ones(2, H, W, dtype=torch.bool)
    mask[:, :4] = False
    return {"log_depth": ramp, "normal": normal, "mask": mask, "image": torch.rand(2, H, W, 3)}


@pytest.fixture(scope="module")
def depth_node():
    return pack_module("nodes.depth").FE2ELogDepthDecode


@pytest.fixture(scope="module")
def normal_node():
    return pack_module("nodes.normal").FE2ENormalColorize


def test_default_is_for_controlnets(geometry, depth_node):
    picture, raw, out = run_node(depth_node, geometry=geometry)
    assert picture.shape == raw.shape == (2, H, W, 3)
    assert picture.dtype == raw.dtype == torch.float32
    assert (picture[:, 4:, 0] == 1).all(), "near is white"
    assert (picture[:, 4:, -1] == 0).all()
    assert (picture[:, :4] == 0).all(), "outside the mask is far"
    assert torch.equal(picture[..., 0], picture[..., 2])
    assert raw.max().item() == pytest.approx(1.0)
    assert raw.min().item() == pytest.approx(0.1)
    assert out["metric"] is False
    assert "depth" not in geometry, "the input dict is left alone"


def test_metric(geometry, depth_node):
    _, raw, out = run_node(
        depth_node, geometry=geometry, preset="metric (far white, metres)", near=0.5, far=8.0
    )
    assert raw[0, 0, 0, 0].item() == pytest.approx(0.5)
    assert raw[0, 0, -1, 0].item() == pytest.approx(8.0, rel=1e-5)
    assert torch.equal(raw[..., 0], out["depth"])
    assert out["metric"] is True
    assert torch.allclose(out["log_range"], torch.full((2,), math.log(16.0)))
    assert torch.allclose(out["log_near"], torch.full((2,), math.log(0.5)))
    # a later node takes these metres over its own inputs
    again = run_node(depth_node, geometry=out, preset="metric (far white, metres)", near=1.0, far=2.0)
    assert torch.allclose(again[1], raw)


def test_near_behind_far_is_refused_only_where_it_matters(geometry, depth_node):
    with pytest.raises(ValueError, match=r"near 5\.0 and far 5\.0"):
        run_node(depth_node, geometry=geometry, preset="metric (far white, metres)", near=5.0, far=5.0)
    run_node(depth_node, geometry=geometry, near=5.0, far=5.0)


def test_custom(geometry, depth_node):
    module = pack_module("nodes.depth")
    picture, raw, out = run_node(
        depth_node, geometry=geometry, preset=module.CUSTOM, mapping="log", white=module.FAR_WHITE
    )
    assert torch.equal(raw[..., 0], geometry["log_depth"])
    assert (picture[:, 4:, -1] == 1).all()
    assert "depth" not in out


def test_user_mask(geometry, depth_node):
    mask = torch.ones(1, H, W)
    mask[..., : W // 2] = 0
    picture, _, _ = run_node(depth_node, geometry=geometry, mask=mask)
    assert (picture[:, :, : W // 2] == 0).all()
    assert (picture[:, 4:, W // 2] == 1).all(), "normalised inside the mask"
    with pytest.raises(ValueError, match="mask"):
        run_node(depth_node, geometry=geometry, mask=torch.ones(1, 5, 5))


def test_normal_colours(geometry, normal_node):
    (picture,) = run_node(normal_node, geometry=geometry)
    assert picture.shape == (2, H, W, 3)
    assert torch.allclose(picture, torch.tensor([0.5, 0.5, 1.0]).expand_as(picture)), "facing, also outside"
    (picture,) = run_node(normal_node, geometry=geometry, convention="OpenCV", background="black")
    assert (picture[:, :4] == 0).all()
    assert torch.allclose(picture[:, 4:], torch.tensor([0.5, 0.5, 0.0]).expand(2, H - 4, W, 3))
    (picture,) = run_node(normal_node, geometry=geometry, background="custom", background_color="#ff0000")
    assert (picture[:, :4] == torch.tensor([1.0, 0.0, 0.0])).all()
    with pytest.raises(ValueError, match="background_color"):
        run_node(normal_node, geometry=geometry, background="custom", background_color="reddish")


def test_not_a_geometry(depth_node, normal_node):
    for node in (depth_node, normal_node):
        with pytest.raises(ValueError, match="geometry"):
            run_node(node, geometry={"depth": torch.zeros(1, 2, 2)})
