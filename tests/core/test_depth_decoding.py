from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fe2e_core.depth_decoding import (
    GIVEN,
    MAPPINGS,
    PER_BATCH,
    PRESETS,
    DepthStyle,
    decode_depth,
    normalize_picture,
)


def label(depth, near, far):
    """Eq. 7 from its definition."""
    return 2 * (torch.log(depth) - math.log(near)) / (math.log(far) - math.log(near)) - 1


DEPTH = torch.linspace(0.5, 20.0, 60).reshape(1, 6, 10)
Y = label(DEPTH, 1.0, 16.0)
ALL = torch.ones_like(DEPTH, dtype=torch.bool)


def test_metric_is_the_inverse_of_eq_7():
    out = decode_depth(Y, ALL, DepthStyle("metric", near=1.0, far=16.0))
    assert torch.allclose(out.values, DEPTH, rtol=1e-5)
    assert out.metric
    assert torch.allclose(out.depth, DEPTH, rtol=1e-5)
    assert out.log_near.item() == pytest.approx(0.0)
    assert out.log_range.item() == pytest.approx(math.log(16))


def test_relative_and_disparity():
    relative = decode_depth(Y, ALL, DepthStyle("relative", ratio=16.0))
    assert torch.allclose(relative.values, DEPTH, rtol=1e-5)
    assert not relative.metric
    disparity = decode_depth(Y, ALL, DepthStyle("disparity", ratio=16.0))
    assert torch.allclose(disparity.values, 1 / DEPTH, rtol=1e-5)


def test_log_is_what_the_network_said():
    out = decode_depth(Y, ALL, DepthStyle("log"))
    assert torch.equal(out.values, Y)
    assert out.depth is None
    assert out.log_range is None
    assert not out.metric


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("near_white", [True, False])
def test_direction_of_the_picture(mapping, near_white):
    picture = decode_depth(Y, ALL, DepthStyle(mapping, near_white=near_white, low=0.0, high=100.0)).picture
    nearest, farthest = picture.flatten()[0].item(), picture.flatten()[-1].item()
    assert (nearest, farthest) == pytest.approx((1.0, 0.0) if near_white else (0.0, 1.0), abs=1e-6)
    steps = picture.flatten().diff()
    assert ((steps < 0) if near_white else (steps > 0)).all()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_draw_outside_as_far(name):
    mask = ALL.clone()
    mask[..., :3] = False
    wild = torch.where(mask, Y, torch.full_like(Y, -40.0))
    style = PRESETS[name]
    picture = decode_depth(wild, mask, style).picture
    assert (picture[~mask] == (0.0 if style.near_white else 1.0)).all()
    # what lies outside must not disturb what lies inside
    assert torch.equal(picture[mask], decode_depth(Y, mask, style).picture[mask])
    assert picture[mask].min() == 0
    assert picture[mask].max() == 1


def test_known_range_wins_unless_told():
    style = DepthStyle("relative", ratio=2.0)
    known = decode_depth(Y, ALL, style, log_range=torch.tensor([math.log(16.0)]))
    assert torch.allclose(known.values, DEPTH, rtol=1e-5)
    own = decode_depth(Y, ALL, replace(style, range_from=GIVEN), log_range=torch.tensor([math.log(16.0)]))
    assert own.values.max() < 2.5
    # a refined depth map wins over the range; metres are never made from an unknown unit
    refined = decode_depth(Y, ALL, style, depth=DEPTH * 3, log_range=torch.tensor([math.log(16.0)]))
    assert torch.allclose(refined.values, DEPTH * 3)
    metres = decode_depth(Y, ALL, DepthStyle("metric", near=2.0, far=4.0), depth=DEPTH * 3, metric=False)
    assert torch.allclose(metres.values[0, 0, 0], 2 * 2 ** ((Y[0, 0, 0] + 1) / 2))
    metres = decode_depth(Y, ALL, DepthStyle("metric", near=2.0, far=4.0), depth=DEPTH * 3, metric=True)
    assert torch.allclose(metres.values, DEPTH * 3)
    assert metres.metric


def test_batch_normalisation_keeps_frames_comparable():
    clip = torch.stack([Y[0], Y[0] * 0.5])
    mask = torch.ones_like(clip, dtype=torch.bool)
    each = decode_depth(clip, mask, DepthStyle("log", low=0, high=100)).picture
    assert each[0].max() == 1
    assert each[1].max() == 1
    shared = decode_depth(clip, mask, DepthStyle("log", low=0, high=100, normalize=PER_BATCH)).picture
    assert shared[0].max() == 1
    assert shared[1].max() < 1


def test_percentiles_clip():
    values = torch.cat([torch.linspace(0, 1, 999), torch.tensor([1e6])]).reshape(1, 10, 100)
    picture = normalize_picture(values, torch.ones_like(values, dtype=torch.bool), low=1, high=99)
    assert picture.median() == pytest.approx(0.5, abs=0.01)


def test_above_two_to_the_24():
    y = torch.linspace(-1, 1, 2**24 + 4096).reshape(1, 4097, 4096)
    picture = decode_depth(
        y, torch.ones_like(y, dtype=torch.bool), DepthStyle("log", near_white=False)
    ).picture
    assert picture.min() == 0
    assert picture.max() == 1
    assert abs(picture.mean().item() - 0.5) < 1e-3


def test_flat_and_empty():
    flat = torch.full((1, 4, 5), 0.3)
    assert (decode_depth(flat, torch.ones_like(flat, dtype=torch.bool), DepthStyle()).picture == 0.5).all()
    nothing = torch.zeros_like(flat, dtype=torch.bool)
    assert (decode_depth(flat, nothing, DepthStyle()).picture == 0).all()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"near": 5.0, "far": 5.0}, "near"),
        ({"near": 9.0, "far": 2.0}, "far"),
        ({"near": 0.0}, "near"),
        ({"near": 1e-290}, "near at least"),
        ({"ratio": 1.0}, "far_near_ratio"),
        ({"low": 50.0, "high": 50.0}, "clip_low"),
        ({"mapping": "linear"}, "mapping"),
    ],
)
def test_refused(change, names):
    with pytest.raises(ValueError, match=names):
        replace(DepthStyle("metric"), **change)
