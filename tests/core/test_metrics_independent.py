"""The metrics against other people's implementations (scipy, scikit-learn) and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.spatial.transform import Rotation
from sklearn import metrics

from fe2e_core.metrics import (
    abs_rel,
    align_disparity,
    align_linear,
    align_log,
    angular_error_deg,
    delta,
    depth_summary,
    log_rmse,
    rank_mean,
    rmse,
)
from train.bench.angles import collect


@pytest.fixture(scope="module")
def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A prediction, a truth with 0 where unknown, and the mask; (60, 80), depth 0.5 to 60 m."""
    rng = np.random.default_rng(5)
    truth = np.exp(rng.uniform(math.log(0.5), math.log(60), (60, 80)))
    prediction = truth * np.exp(rng.normal(0, 0.15, truth.shape))
    mask = rng.random(truth.shape) < 0.7
    truth[~mask] = 0
    return torch.from_numpy(prediction).float(), torch.from_numpy(truth).float(), torch.from_numpy(mask)


def test_depth_errors_are_scikit_learns(maps):
    prediction, truth, mask = maps
    p, t = prediction[mask].double().numpy(), truth[mask].double().numpy()
    assert abs_rel(prediction, truth, mask) == pytest.approx(metrics.mean_absolute_percentage_error(t, p), rel=1e-12)
    assert rmse(prediction, truth, mask) == pytest.approx(metrics.root_mean_squared_error(t, p), rel=1e-12)
    expected = metrics.root_mean_squared_error(np.log(t), np.log(p))
    assert log_rmse(prediction, truth, mask) == pytest.approx(expected, rel=1e-12)
    near = (np.maximum(p / t, t / p) < 1.25).astype(int)
    assert delta(prediction, truth, mask) == pytest.approx(metrics.accuracy_score(np.ones_like(near), near), rel=1e-12)


def test_depth_errors_are_moments_of_scipy(maps):
    prediction, truth, mask = maps
    p, t = prediction[mask].double().numpy(), truth[mask].double().numpy()
    relative = stats.describe(np.abs(p / t - 1))
    assert abs_rel(prediction, truth, mask) == pytest.approx(relative.mean, rel=1e-12)
    assert rmse(prediction, truth, mask) == pytest.approx(stats.pmean(np.abs(p - t), 2), rel=1e-12)
    assert log_rmse(prediction, truth, mask) == pytest.approx(stats.pmean(np.abs(np.log(p / t)), 2), rel=1e-9)
    # the share within a factor is a value of the empirical distribution of |ln ratio|
    empirical = stats.ecdf(np.abs(np.log(p / t))).cdf
    for power in (1, 2, 3):
        found = delta(prediction, truth, mask, power=power)
        assert found == pytest.approx(float(empirical.evaluate(power * math.log(1.25))), abs=1e-12)


def test_the_summary_is_the_single_errors(maps):
    prediction, truth, mask = maps
    found = depth_summary(prediction, truth, mask)
    p, t = prediction[mask].double(), truth[mask].double()
    assert found.abs_rel == abs_rel(prediction, truth, mask)
    assert found.sq_rel == pytest.approx(float(((p - t) ** 2 / t).mean()), rel=1e-12)
    assert found.rmse == rmse(prediction, truth, mask)
    assert found.log_rmse == pytest.approx(log_rmse(prediction, truth, mask), rel=1e-9)
    assert (found.delta1, found.delta2, found.delta3) == tuple(
        delta(prediction, truth, mask, power=power) for power in (1, 2, 3)
    )
    wrong = prediction.clone()
    wrong[mask.nonzero()[0][0], mask.nonzero()[0][1]] = -1
    assert depth_summary(wrong, truth, mask).log_rmse == math.inf
    assert depth_summary(wrong, truth, mask).delta1 == delta(wrong, truth, mask)


def test_the_alignments_are_regressions(maps):
    _, truth, mask = maps
    rng = np.random.default_rng(6)
    t = truth[mask].double().numpy()
    noisy = truth.double().clone()
    noisy[mask] *= torch.from_numpy(np.exp(rng.normal(0, 0.1, t.shape)))

    linear = align_linear(0.3 * noisy - 1, truth, mask)
    line = stats.linregress((0.3 * noisy - 1)[mask].numpy(), t)
    assert (linear.scale, linear.shift) == pytest.approx((line.slope, line.intercept), rel=1e-9)

    label = torch.where(mask, noisy.clamp_min(1e-3).log() / 5, 0.0)
    log = align_log(label, truth, mask)
    counted = (mask & (label > -1)).numpy()
    line = stats.linregress(((label + 1) / 2).numpy()[counted], np.log(truth.double().numpy()[counted]))
    assert (log.scale, log.shift) == pytest.approx((line.slope, line.intercept), rel=1e-9)

    disparity = torch.where(mask, 2 / noisy.clamp_min(1e-3) + 0.1, 0.0)
    inverse = align_disparity(disparity, truth, mask)
    line = stats.linregress(disparity[mask].numpy(), 1 / t)
    assert (inverse.scale, inverse.shift) == pytest.approx((line.slope, line.intercept), rel=1e-9)

    best = optimize.minimize(lambda x: np.square(x[0] * noisy[mask].numpy() + x[1] - t).mean(), (1.0, 0.0), tol=1e-12)
    assert align_linear(noisy, truth, mask).scale == pytest.approx(best.x[0], abs=1e-4)


def test_disparity_alignment_undoes_scale_and_shift_and_clips():
    truth = torch.tensor([1.0, 2.0, 5.0, 50.0])
    found = align_disparity(3 / truth + 0.2, truth)
    assert found.depth.tolist() == pytest.approx(truth.tolist(), rel=1e-5)
    assert (found.scale, found.shift) == pytest.approx((1 / 3, -0.2 / 3), abs=1e-6)
    # beyond the line's zero everything is 1000 m away, or as far as the range goes
    far = align_disparity(torch.tensor([0.01, 1.0, 0.5]), torch.tensor([1.0, 1.0, 100.0]),
                          torch.tensor([False, True, True]))
    assert float(far.depth[0]) == pytest.approx(1000)
    near = align_disparity(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 100.0]), near=2.0, far=10.0)
    assert near.depth.tolist() == [2.0, 10.0]
    with pytest.raises(ValueError, match="positive"):
        align_disparity(torch.zeros(3), torch.ones(3))


def test_angles_are_rotations():
    rng = np.random.default_rng(7)
    rotations = Rotation.from_rotvec(rng.normal(size=(500, 3)))
    # a vector at right angles to the axis turns by the whole angle
    axes = rotations.as_rotvec()
    start = np.cross(axes, rng.normal(size=(500, 3)))
    end = rotations.apply(start)
    found = angular_error_deg(torch.from_numpy(start), torch.from_numpy(end))
    np.testing.assert_allclose(found.numpy(), np.degrees(rotations.magnitude()), atol=1e-9)


def test_the_released_formula_agrees():
    """acos of the clamped cosine, in float32 as the released evaluation has it; ours is exact where it is not."""
    rng = np.random.default_rng(8)
    a = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(20000, 3))).float(), dim=-1)
    b = torch.nn.functional.normalize(a + 0.3 * torch.from_numpy(rng.normal(size=(20000, 3))).float(), dim=-1)
    theirs = torch.rad2deg(torch.acos(torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1))).double()
    ours = angular_error_deg(a, b)
    assert float((ours - theirs).abs().max()) < 0.05
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=1e-4)


def test_pooled_normals_are_not_the_mean_over_pictures():
    small, large = torch.full((10,), 40.0), torch.cat([torch.full((60,), 4.0), torch.full((30,), 10.0)])
    pooled = (collect(small) + collect(large)).summary()
    pictures = [collect(small).summary(), collect(large).summary()]
    assert pooled.mean == pytest.approx((400 + 240 + 300) / 100)
    assert sum(p.mean for p in pictures) / 2 == pytest.approx((40 + 6) / 2)
    assert pooled.within[11.25] == 0.9 and sum(p.within[11.25] for p in pictures) / 2 == 0.5
    values = torch.from_numpy(np.random.default_rng(9).uniform(0, 90, 1001))
    found = collect(values).summary()
    for part in (values, values[1:], values[:2], values[:1]):  # odd and even counts
        assert collect(part).summary().median == pytest.approx(np.median(part.numpy()), abs=0.01)
    assert found.rmse == pytest.approx(stats.pmean(values.numpy(), 2), rel=1e-12)
    # a uniform distribution: the share below a threshold is the threshold
    even = collect((torch.arange(90000) + 0.5).double() / 1000).summary()
    assert even.within[22.5] == pytest.approx(0.25) and even.mean == pytest.approx(45)
    assert even.median == pytest.approx(45, abs=0.01)


def test_rank_means():
    values = [float(v) for v in range(10)]
    # three processes: 0-2, 3-5, 6-9
    assert rank_mean(values, 3) == pytest.approx((1 + 4 + 7.5) / 3)
    assert rank_mean(values, 1) == rank_mean(values, 5) == pytest.approx(4.5)
    assert rank_mean(values, 10) == pytest.approx(4.5)
    # 454 pictures on 8 GPUs: seven runs of 56 and one of 62, as the released evaluation cuts ETH3D
    runs = [1.0] * 392 + [2.0] * 62
    assert rank_mean(runs, 8) == pytest.approx(9 / 8)
    assert sum(runs) / 454 == pytest.approx(1.1365639)
    with pytest.raises(ValueError, match="3 values on 4"):
        rank_mean([1.0, 2.0, 3.0], 4)
