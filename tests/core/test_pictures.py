"""Clay, comparison and histogram pictures."""

from __future__ import annotations

import pytest
import torch

from fe2e_core.comparison import side_by_side, wipe
from fe2e_core.histogram import depth_histogram, draw_histogram
from fe2e_core.shading import Lamp, clay

SIZE = 64


def ball() -> tuple[torch.Tensor, torch.Tensor]:
    """OpenCV normals of a ball, seen orthographically, and its mask."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    mask = right**2 + down**2 < 0.9
    away = -(1 - right**2 - down**2).clamp_min(0).sqrt()
    return torch.stack([right, down, away], -1)[None], mask[None]


@pytest.mark.parametrize(("x", "y"), [(-1.0, 0.5), (2.0, 0.5), (0.5, -1.0), (0.5, 2.0)])
def test_the_side_of_the_lamp_is_bright(x, y):
    normal, mask = ball()
    picture = clay(normal, mask, Lamp(x=x, y=y, distance=0.5, gloss=0.0))[0, ..., 0]
    half = SIZE // 2
    sides = {
        "left": picture[:, :half],
        "right": picture[:, half:],
        "top": picture[:half],
        "bottom": picture[half:],
    }
    bright = "left" if x < 0 else "right" if x > 1 else "top" if y < 0 else "bottom"
    dark = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[bright]
    assert sides[bright].sum() > 1.5 * sides[dark].sum()


def test_a_wall_is_brightest_before_the_lamp_and_by_the_cosine():
    normal = torch.zeros(1, SIZE, SIZE, 3)
    normal[..., 2] = -1
    picture = clay(normal, lamp=Lamp(x=0.25, y=0.5, distance=0.5, ambient=0.0, gloss=0.0, color=(1, 1, 1)))[
        0, ..., 0
    ]
    row = picture[SIZE // 2] ** 2.2
    assert abs(int(row.argmax()) - SIZE // 4) <= 1
    u = (torch.arange(SIZE) + 0.5) / SIZE
    cosine = 0.5 / torch.sqrt((u - 0.25) ** 2 + 0.25 + (0.5 / SIZE) ** 2)
    assert torch.allclose(row, cosine, atol=1e-3)


def test_clay_range_mask_and_errors():
    normal, mask = ball()
    picture = clay(normal, mask, background=0.3)
    assert picture.shape == (1, SIZE, SIZE, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert torch.allclose(picture[~mask], torch.tensor(0.3))
    with pytest.raises(ValueError, match="distance"):
        Lamp(distance=0.0)
    with pytest.raises(ValueError, match="ambient"):
        Lamp(ambient=2.0)


def test_side_by_side():
    a, b = torch.zeros(2, 10, 20, 3), torch.full((1, 20, 20, 3), 0.5)
    out = side_by_side([a, b], gap=3)
    assert out.shape == (2, 10, 20 + 3 + 10, 3)
    assert (out[:, :, 20:23] == 1).all()
    assert torch.allclose(out[:, :, 23:], torch.tensor(0.5))
    assert side_by_side([a, b], vertical=True).shape == (2, 30, 20, 3)
    with pytest.raises(ValueError, match="batch of 2"):
        side_by_side([a, torch.zeros(3, 10, 20, 3)])


def test_wipe():
    a, b = torch.zeros(1, 10, 20, 3), torch.ones(1, 5, 10, 3)
    out = wipe(a, b, position=0.25, line=0)
    assert (out[:, :, :5] == 0).all()
    assert (out[:, :, 5:] == 1).all()
    top = wipe(a, b, position=0.5, angle=90, line=0)
    assert (top[:, :5] == 0).all()
    assert (top[:, 5:] == 1).all()
    assert torch.equal(wipe(a, b, position=1.0), a)
    assert (wipe(a, b, position=0.0) == 1).all()


def test_histogram():
    values = torch.linspace(1, 3, 1000).reshape(1, 20, 50)
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[:, 10:] = False
    histogram = depth_histogram(values, mask, bins=10)
    assert histogram.counts.sum() == 500
    assert (histogram.counts == 50).all()
    assert histogram.percentiles[50] == pytest.approx(1.5, abs=2e-3)
    picture = draw_histogram(histogram, 320, 200)
    assert picture.shape == (200, 320, 3)
    assert picture.max() > 0.9
    flat = depth_histogram(torch.ones(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))
    assert torch.isfinite(draw_histogram(flat, 64, 64)).all()
    with pytest.raises(ValueError, match="mask"):
        depth_histogram(values, torch.zeros_like(mask))
