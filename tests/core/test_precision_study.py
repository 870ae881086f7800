"""The measures of benchmarks/precision.py."""

from __future__ import annotations

import pytest
import torch

from benchmarks.precision import count_steps, degrees


def test_steps_of_a_rounded_ramp():
    exact = torch.linspace(-1, 1, 1024)
    fine = count_steps(exact)
    assert (fine.distinct, fine.run) == (1024, 1)
    assert fine.largest == pytest.approx(2 / 1023, rel=1e-3)
    coarse = count_steps((exact * 8).round() / 8)
    assert coarse.distinct == 17
    assert 60 <= coarse.run <= 66
    assert coarse.largest == pytest.approx(0.125)
    flat = count_steps(torch.zeros(10))
    assert (flat.distinct, flat.run, flat.largest) == (1, 10, 0)


def test_small_angles_are_measured():
    angle = torch.tensor(1e-4)
    a = torch.tensor([[0.0, 0.0, 1.0]])
    b = torch.stack([angle.sin(), torch.tensor(0.0), angle.cos()])[None]
    assert degrees(a, b) == pytest.approx(float(torch.rad2deg(angle)), rel=1e-3)
    assert degrees(a, -a) == pytest.approx(180)
