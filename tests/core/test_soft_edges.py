"""Soft depth edges move to the picture's edges; sharp ones, slopes and relief stay."""

from __future__ import annotations

import pytest
import torch

from fe2e_core import soft_edges
from fe2e_core.soft_edges import edge_width, sharpen_soft_edges
from tests.harness.fake_prediction import blur

HEIGHT, WIDTH = 120, 200


def step(column: int) -> torch.Tensor:
    """Near (-0.3) left of a column, far (0.2) from there on."""
    return torch.where(torch.arange(WIDTH) < column, -0.3, 0.2).expand(HEIGHT, WIDTH).contiguous()


def two_colours(column: int, seed: int = 0) -> torch.Tensor:
    """(H,W,3) of two colours that meet at a column, with a little noise."""
    noise = 0.02 * torch.randn(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))
    left, right = torch.tensor([0.7, 0.3, 0.2]), torch.tensor([0.3, 0.4, 0.6])
    return (torch.where((torch.arange(WIDTH) < column)[:, None], left, right) + noise).clamp(0, 1)


def checks(size: int) -> torch.Tensor:
    """(H,W,3) of black and white squares."""
    rows, columns = torch.arange(HEIGHT) // size, torch.arange(WIDTH) // size
    return ((rows[:, None] + columns) % 2).float()[..., None].expand(-1, -1, 3)


def test_a_soft_edge_moves_to_the_edge_of_the_picture():
    """The network saw the step 4 pixels off and blurred it over some 20."""
    truth = step(100)
    predicted = blur(step(104), 6.0)
    sharpened = sharpen_soft_edges(predicted, two_colours(100))
    near = slice(90, 110)
    before, after = ((x - truth)[:, near].abs().mean() for x in (predicted, sharpened))
    assert after < 0.6 * before, (before, after)
    assert sharpened.min() >= -0.3 - 1e-5
    assert sharpened.max() <= 0.2 + 1e-5


def test_a_sharp_edge_stays_whatever_the_colours():
    predicted = blur(step(100), 0.5)
    for picture in (torch.full((HEIGHT, WIDTH, 3), 0.5), two_colours(80), checks(10)):
        change = (sharpen_soft_edges(predicted, picture) - predicted).abs()
        assert change.max() < 0.06, change.max()
        assert change[:, :90].max() < 1e-3
        assert change[:, 110:].max() < 1e-3


def test_slopes_and_relief_stay_under_a_texture():
    slope = torch.linspace(-0.6, 0.6, WIDTH).expand(HEIGHT, WIDTH)
    relief = slope + 0.02 * torch.sin(torch.arange(WIDTH) / 3)
    for depth in (slope, relief):
        for picture in (checks(10), checks(4), torch.full((HEIGHT, WIDTH, 3), 0.5)):
            inside = (slice(40, -40), slice(40, -40))
            change = (sharpen_soft_edges(depth.contiguous(), picture) - depth)[inside].abs()
            assert change.max() < 0.02, change.max()


def test_widths_are_measured():
    for sigma, least, most in ((0.5, 1, 3), (6.0, 10, 20)):
        width, contrast = edge_width(blur(step(100), sigma))
        assert least < float(width[60, 100]) < most
        assert float(contrast[60, 100]) == pytest.approx(0.5, abs=0.02)
    assert float(contrast[60, 5]) < 1e-3


def test_blocks_do_not_show(monkeypatch):
    predicted, picture = blur(step(104), 6.0), two_colours(100)
    whole = sharpen_soft_edges(predicted, picture)
    monkeypatch.setattr(soft_edges, "_BLOCK", 48)
    torch.testing.assert_close(sharpen_soft_edges(predicted, picture), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 90), (5, 3)])
def test_tiny_pictures(height, width):
    depth = torch.linspace(-1, 1, height * width).view(height, width)
    result = sharpen_soft_edges(depth, torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1)))
    assert result.shape == depth.shape
    assert result.isfinite().all()
    assert result.abs().max() <= 1


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="picture: found"):
        sharpen_soft_edges(torch.zeros(10, 12), torch.zeros(12, 10, 3))
