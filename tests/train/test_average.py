"""The moving average of the weights, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.average import WeightAverage


def test_a_young_average_forgets_its_start_faster_than_an_old_one():
    """Step n keeps (1 + n) / (10 + n) of the average as long as that is less than `decay`."""
    weight = nn.Parameter(torch.zeros(1))
    average = WeightAverage([("weight", weight)], decay=0.5)
    for step, given, expected in (
        (1, 11.0, 9.0),  # 2/11 of 0 and 9/11 of 11
        (2, 1.0, 3.0),  # 3/12 of 9 and 9/12 of 1
        (3, 16.0, 12.0),  # 4/13 of 3 and 9/13 of 16
        (100, 20.0, 16.0),  # 101/110 is more than a half: half of 12 and half of 20
    ):
        weight.data.fill_(given)
        average.update(step)
        assert float(average.tensors["weight"]) == pytest.approx(expected, abs=1e-5)
        assert float(weight) == given
    with average.in_place():
        assert float(weight) == pytest.approx(16.0, abs=1e-5)
    assert float(weight) == 20.0
