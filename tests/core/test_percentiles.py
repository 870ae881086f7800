from __future__ import annotations

import numpy as np
import pytest
import torch

from fe2e_core.percentiles import percentile


def test_equals_numpy():
    values = torch.randn(37, 41, generator=torch.Generator().manual_seed(3))
    mask = values > -0.5
    for q in (0, 2, 33.3, 50, 98, 100):
        assert percentile(values, q).item() == pytest.approx(np.percentile(values.numpy(), q), abs=1e-6)
        expected = np.percentile(values.numpy()[mask.numpy()], q)
        assert percentile(values, q, mask).item() == pytest.approx(expected, abs=1e-6)
    pair = percentile(values, (2, 98))
    assert pair.shape == (2,)
    assert pair[0] == percentile(values, 2)
    assert pair[1] == percentile(values, 98)


def test_works_above_the_limit_of_older_torch():
    count = 2**24 + 2**20
    values = torch.arange(count, dtype=torch.float32).flip(0) / count
    low, high = percentile(values, (2, 98))
    assert low.item() == pytest.approx(0.02, abs=1e-6)
    assert high.item() == pytest.approx(0.98, abs=1e-6)


def test_one_value_and_errors():
    assert percentile(torch.tensor([4.0]), 17).item() == 4.0
    with pytest.raises(ValueError, match="mask"):
        percentile(torch.zeros(3), 5, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no element"):
        percentile(torch.zeros(3), 5, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="NaN"):
        percentile(torch.tensor([0.0, float("nan")]), 5)
    with pytest.raises(ValueError, match="q"):
        percentile(torch.zeros(3), 101)
