"""Metres from near and far points, lengths, sparse points with outliers and a foreign depth."""

from __future__ import annotations

import math

import pytest
import torch

from fe2e_core.anchoring import fit_anchor, sample_at, scale_from_distance, scale_from_length
from fe2e_core.geometry import depth_from_log, intrinsics_from_fov
from tests.core.simulation import eq7_label, plane
from train.scenes import HELD_OUT, render_scene


@pytest.mark.parametrize("seed", range(HELD_OUT + 40, HELD_OUT + 44))
def test_sparse_points_with_a_third_of_outliers(seed):
    scene = render_scene(seed, 96, 128)
    label, log_range = eq7_label(scene.depth, scene.mask, bf16=True)
    generator = torch.Generator().manual_seed(seed % 1000)
    rows, cols = torch.where(scene.mask)
    pick = torch.randint(0, len(rows), (80,), generator=generator)
    x = (label[rows[pick], cols[pick]] + 1) / 2
    metres = scene.depth[rows[pick], cols[pick]] * (1 + 0.005 * torch.randn(80, generator=generator))
    wrong = torch.randperm(80, generator=generator)[:24]
    metres[wrong] = metres[wrong] * torch.exp(1.5 * torch.randn(24, generator=generator))
    fit = fit_anchor(x, metres)
    depth = depth_from_log(label, fit.gain, fit.offset)
    error = (depth / scene.depth - 1)[scene.mask].abs()
    assert error.median() < 0.01
    assert fit.residual < 0.01
    assert fit.given == 80
    assert 50 <= fit.used <= 70
    assert fit.residuals.shape == (80,)
    # with the range known, one number is left
    known = fit_anchor(x * log_range, metres, gain=1.0)
    error = (depth_from_log(label, log_range, known.offset) / scene.depth - 1)[scene.mask].abs()
    assert error.median() < 0.01


def test_two_points_give_range_and_scale_exactly():
    x = torch.tensor([0.2, 0.9])
    fit = fit_anchor(x, torch.tensor([1.5, 6.0]))
    assert math.exp(fit.gain * 0.2 + fit.offset) == pytest.approx(1.5)
    assert math.exp(fit.gain * 0.9 + fit.offset) == pytest.approx(6.0)


def test_another_depth_with_its_own_errors():
    scene = render_scene(HELD_OUT + 45, 96, 128)
    label, log_range = eq7_label(scene.depth, scene.mask)
    other = scene.depth * 2.0
    other[:, :30] = 1.0  # a border that the other model got wrong
    fit = fit_anchor((label[scene.mask] + 1) / 2, other[scene.mask])
    assert fit.gain == pytest.approx(log_range, rel=0.01)
    depth = depth_from_log(label, fit.gain, fit.offset)
    assert (depth / (2 * scene.depth) - 1)[scene.mask].abs().median() < 0.01


def test_bad_anchors_are_named():
    with pytest.raises(ValueError, match="at least 2"):
        fit_anchor(torch.tensor([0.5]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="same depth"):
        fit_anchor(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="fall"):
        fit_anchor(torch.tensor([0.1, 0.9]), torch.tensor([5.0, 1.0]))
    with pytest.raises(ValueError, match="as many"):
        fit_anchor(torch.zeros(3), torch.ones(2))


def test_points_are_sampled_where_they_were_picked():
    picture = torch.arange(12.0).reshape(3, 4)
    points = torch.tensor([[0.1, 0.1], [0.99, 0.99], [0.6, 0.5], [1.2, 0.5]])
    found = sample_at(picture, points, radius=0)
    assert found[:3].tolist() == [0.0, 11.0, 6.0]
    assert math.isnan(found[3])
    mask = torch.zeros(3, 4, dtype=torch.bool)
    assert math.isnan(sample_at(picture, points[:1], mask)[0])


def test_one_length_and_one_distance_scale_a_wall():
    """A wall one unit away, seen with 90 degrees: its visible half width is one unit."""
    depth, _, mask = plane((0.0, 0.0, -1.0), 90.0, 64, 64, offset=1.0)
    k = intrinsics_from_fov(90.0, 64, 64)
    ends = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    assert scale_from_length(depth, k, ends, 3.0, mask) == pytest.approx(3.0, rel=1e-5)
    assert scale_from_distance(depth, k, torch.tensor([0.5, 0.5]), 4.0, mask) == pytest.approx(4.0, rel=1e-5)
    slant = scale_from_distance(depth, k, torch.tensor([1.0, 0.5]), 4.0, mask)
    assert slant == pytest.approx(4.0 / math.sqrt(2), rel=1e-5)
    with pytest.raises(ValueError, match="same point"):
        scale_from_length(depth, k, torch.tensor([[0.5, 0.5], [0.5, 0.5]]), 1.0)
    with pytest.raises(ValueError, match="outside"):
        scale_from_length(depth, k, torch.tensor([[0.5, 0.5], [1.5, 0.5]]), 1.0)
