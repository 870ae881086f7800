"""Depth and normal errors against values worked out by hand, and what the alignments leave unchanged."""

from __future__ import annotations

import math

import pytest
import torch

from fe2e_core.metrics import (
    abs_rel,
    align_linear,
    align_log,
    angular_error_deg,
    delta,
    log_rmse,
    rmse,
)
from train.bench.angles import collect


def test_depth_errors_by_hand():
    target = torch.tensor([1.0, 2.0, 4.0])
    prediction = torch.tensor([1.1, 2.0, 3.0])
    assert abs_rel(prediction, target) == pytest.approx((0.1 + 0 + 0.25) / 3, rel=1e-6)
    assert delta(prediction, target) == pytest.approx(2 / 3)  # 4/3 is beyond 1.25
    assert delta(prediction, target, power=2) == 1.0
    assert rmse(prediction, target) == pytest.approx(math.sqrt((0.01 + 1) / 3), rel=1e-6)
    expected = math.sqrt((math.log(1.1) ** 2 + math.log(0.75) ** 2) / 3)
    assert log_rmse(prediction, target) == pytest.approx(expected, rel=1e-6)


def test_only_counted_pixels_count():
    target = torch.tensor([1.0, 0.0])
    mask = torch.tensor([True, False])
    assert abs_rel(torch.tensor([1.0, 7.0]), target, mask) == 0
    with pytest.raises(ValueError, match="not positive"):
        abs_rel(torch.tensor([1.0, 7.0]), target)
    with pytest.raises(ValueError, match="no pixel"):
        abs_rel(torch.ones(2), torch.ones(2), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="shape"):
        abs_rel(torch.ones(3), torch.ones(2))


def test_log_alignment_undoes_any_range():
    label = torch.linspace(-0.9, 1, 50)
    target = torch.exp(1.7 * (label + 1) / 2 + 0.3)
    found = align_log(label, target)
    assert (found.scale, found.shift) == pytest.approx((1.7, 0.3), abs=1e-5)
    torch.testing.assert_close(found.depth.float(), target, rtol=1e-5, atol=0)
    # A label squeezed into another range means the same depth.
    squeezed = align_log(label * 0.4 + 0.1, target)
    torch.testing.assert_close(squeezed.depth, found.depth, rtol=1e-5, atol=0)


def test_log_alignment_clips_and_ignores_the_floor():
    label = torch.tensor([-1.0, -0.5, 0.0, 0.5])
    target = torch.tensor([1000.0, 1.0, 10.0, 100.0])
    found = align_log(label, target)  # the first pixel has p = 0 and takes no part
    assert found.depth[1:].tolist() == pytest.approx([1.0, 10.0, 100.0], rel=1e-5)
    far = align_log(torch.tensor([-0.5, 0.0, 1.0]), torch.tensor([1.0, 100.0, 1e4]))
    assert float(far.depth.max()) == pytest.approx(math.exp(5.0))
    assert float(align_log(label, target, far=50.0).depth.max()) == 50.0
    with pytest.raises(ValueError, match="above -1"):
        align_log(torch.full((3,), -1.0), torch.ones(3))


def test_linear_alignment():
    depth = torch.tensor([0.0, 0.25, 1.0])
    found = align_linear(depth, 3 * depth + 2)
    assert (found.scale, found.shift) == pytest.approx((3.0, 2.0), abs=1e-6)
    constant = align_linear(torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))
    assert constant.depth.tolist() == pytest.approx([2.0, 2.0, 2.0])


def test_angles():
    a = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -2.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    small = math.radians(1e-3)
    b = torch.tensor([[0.0, 0.0, -1.0], [0.0, -1.0, -1.0], [-1.0, 0.0, 0.0], [math.cos(small), math.sin(small), 0.0]])
    assert angular_error_deg(a, b).tolist() == pytest.approx([0.0, 45.0, 180.0, 1e-3], rel=1e-4, abs=1e-9)
    with pytest.raises(ValueError, match="ending in 3"):
        angular_error_deg(torch.ones(2, 2), torch.ones(2, 2))


def test_angles_by_hand():
    summary = collect(torch.tensor([1.0, 6.0, 20.0, 40.0])).summary()
    assert summary.mean == pytest.approx(16.75)
    assert summary.rmse == pytest.approx(math.sqrt((1 + 36 + 400 + 1600) / 4))
    assert summary.within == {5.0: 0.25, 7.5: 0.5, 11.25: 0.5, 22.5: 0.75, 30.0: 0.75}
    assert summary.median == pytest.approx(13, abs=0.01)
    with pytest.raises(ValueError, match="no pixel counts"):
        collect(torch.zeros(0)).summary()
