"""Depth labels: Eq. 7 both ways, BF16 rounding, and the paper's Table 1 recomputed."""

from __future__ import annotations

import math

import pytest
import torch

from fe2e_core.quantization import (
    LabelRange,
    bf16_round,
    decode,
    encode,
    error_table,
    inverse,
    metric_range,
    percentile_range,
    transform,
)

SCHEMES = ("log", "inverse", "uniform", "sqrt")


def test_table_one_of_the_paper():
    found = {(row.scheme, row.depth): row for row in error_table(0.1, 80.0)}
    expected = {  # error in metres, relative error; worked out by hand from appendix C
        ("uniform", 80.0): (0.15625, 0.00195),
        ("uniform", 0.1): (0.15625, 1.5625),
        ("inverse", 80.0): (124.84, 1.5605),
        ("inverse", 0.1): (0.000195, 0.00195),
        ("log", 80.0): (1.0445, 0.01306),
        ("log", 0.1): (0.001306, 0.01306),
    }
    for key, (error, relative) in expected.items():
        assert found[key].error == pytest.approx(error, rel=2e-3)
        assert found[key].abs_rel == pytest.approx(relative, rel=2e-3)


@pytest.mark.parametrize("scheme", ["uniform", "inverse", "log"])
def test_table_one_bounds_what_rounding_really_does(scheme):
    near, far = 0.1, 80.0
    chosen = metric_range(0.0 if scheme == "uniform" else near, far, scheme)
    row = next(r for r in error_table(near, far) if r.scheme == scheme and r.depth == far)
    depth = torch.linspace(79, 80, 2001)
    truncated = decode(encode(depth, chosen, bf16="truncate"), chosen)
    nearest = decode(encode(depth, chosen, bf16="nearest"), chosen)
    if scheme == "inverse":  # first-order table, the real error there is as large as the depth
        assert float((truncated - depth).abs().max()) > 30
        return
    assert float((truncated - depth).abs().max()) <= row.error * 1.03
    assert float((nearest - depth).abs().max()) <= row.error * 0.52
    assert float((nearest - depth).abs().max()) > row.error * 0.4


def test_39_and_78_metres_become_one_only_by_truncation():
    chosen = metric_range(0.1, 80.0, "inverse")
    depth = torch.tensor([39.0, 78.0])
    truncated = encode(depth, chosen, bf16="truncate")
    nearest = encode(depth, chosen, bf16="nearest")
    assert truncated[0] == truncated[1]
    assert nearest[0] != nearest[1]


def test_truncation_and_rounding_of_bf16():
    step = 2.0**-8  # BF16 has 8 significant bits: the step in [0.5, 1)
    values = torch.tensor([0.5 + 0.25 * step, 0.5 + 0.75 * step, -0.5 - 0.75 * step, 0.0, 1.0])
    low, high = 0.5, 0.5 + step
    assert bf16_round(values, "truncate").tolist() == [low, low, -low, 0.0, 1.0]
    assert bf16_round(values, "nearest").tolist() == [low, high, -high, 0.0, 1.0]
    assert torch.isnan(bf16_round(torch.tensor([float("nan")]), "truncate")).all()
    with pytest.raises(ValueError, match="nearest"):
        bf16_round(values, "up")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_there_and_back(scheme):
    depth = torch.logspace(-1, 2, 500)
    torch.testing.assert_close(inverse(transform(depth, scheme), scheme), depth, rtol=2e-5, atol=1e-5)
    chosen = metric_range(0.1, 100.0, scheme)
    torch.testing.assert_close(decode(encode(depth, chosen, bf16=None), chosen), depth, rtol=5e-4, atol=1e-4)


def test_equation_seven_by_hand():
    depth = torch.tensor([1.0, math.e, math.e**2])
    label = encode(depth, LabelRange("log", 0.0, 2.0), bf16=None)
    torch.testing.assert_close(label, torch.tensor([-1.0, 0.0, 1.0]), atol=2e-6, rtol=0)


def test_no_clip_unless_asked():
    chosen = LabelRange("log", 0.0, 1.0)
    depth = torch.tensor([0.1, 10.0])
    assert encode(depth, chosen)[0] < -1 and encode(depth, chosen)[1] > 1
    assert encode(depth, chosen, clip=True).tolist() == [-1.0, 1.0]


def test_invalid_pixels_are_masked_before_the_percentiles():
    depth = torch.linspace(1, 5, 1000)
    with_holes = torch.cat([depth, torch.zeros(500)])
    mask = with_holes > 0
    assert percentile_range(with_holes, mask) == percentile_range(depth)
    assert percentile_range(depth).low == pytest.approx(math.log(1.08), abs=1e-3)
    with pytest.raises(ValueError, match="mask them out"):
        percentile_range(with_holes)
    with pytest.raises(ValueError, match="empty"):
        percentile_range(depth, torch.zeros(1000, dtype=torch.bool))
    with pytest.raises(ValueError, match="constant"):
        percentile_range(torch.full((10,), 2.0))


def test_percentiles_beyond_what_torch_quantile_takes():
    depth = torch.ones(2**24 + 2**20)
    depth[: 2**23] = 4.0
    found = percentile_range(depth)
    assert (found.low, found.high) == pytest.approx((0.0, math.log(4.0)), abs=1e-5)


def test_wrong_arguments_say_what_is_expected():
    with pytest.raises(ValueError, match="log, inverse"):
        transform(torch.ones(1), "linear")
    with pytest.raises(ValueError, match="near is 5"):
        metric_range(5, 2)
