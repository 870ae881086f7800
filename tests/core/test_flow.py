"""Following places from picture to picture, on textures whose motion is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fe2e_core.flow import follow, grey, likeness, shifted_guess
from tests.core.simulation import smooth_noise

HEIGHT, WIDTH = 72, 96


def texture(seed: int = 0) -> torch.Tensor:
    """(2 HEIGHT, 2 WIDTH) grey of several scales, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    parts = [smooth_noise(2 * HEIGHT, 2 * WIDTH, s, generator)[..., 0] for s in (12, 5, 3)]
    return torch.sigmoid(0.6 * sum(parts)).double()


def window(picture: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """(HEIGHT, WIDTH) of a larger picture, from the corner (x, y)."""
    row, col = torch.meshgrid(torch.arange(HEIGHT) + y, torch.arange(WIDTH) + x, indexing="ij")
    size = torch.tensor([picture.shape[1], picture.shape[0]])
    grid = (2 * torch.stack([col, row], -1) + 1) / size - 1
    return F.grid_sample(picture[None, None], grid[None].double(), align_corners=False)[0, 0]


def identity() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([x, y], -1).double()


@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (0.4, -0.3), (2.5, 1.5), (-3.3, 2.1)])
def test_a_shift_is_found_to_a_fraction_of_a_pixel(dx, dy):
    big = texture()
    first, second = window(big, 20, 20), window(big, 20 + dx, 20 + dy)
    at, alike = follow(first, second, identity())
    inner = (slice(8, -8), slice(8, -8))
    moved = (at - identity())[inner] + torch.tensor([dx, dy])
    assert moved.norm(dim=-1).median() < 0.1
    assert (moved.norm(dim=-1) < 0.5).double().mean() > 0.9
    assert alike[inner].nanmedian() > 0.95


def stripes(moved: float) -> torch.Tensor:
    """(HEIGHT, WIDTH) upright stripes of two widths, the left half blank, moved to the left by pixels."""
    across = torch.arange(float(WIDTH)) + moved
    lines = 0.5 + 0.2 * torch.sin(across / 3) + 0.1 * torch.sin(across / 5.3 + 1)
    return torch.where(across > WIDTH / 2, lines, 0.5).expand(HEIGHT, WIDTH).double()


def test_edges_without_corners_are_followed_across_only():
    """Nothing tells how far a stripe moves along itself, and noise must not be taken to tell."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        stripes(x) + 0.01 * torch.randn(HEIGHT, WIDTH, generator=generator).double() for x in (0.0, 1.2)
    )
    at, _ = follow(first, second, identity())
    moved = (at - identity())[10:-10, WIDTH // 2 + 12 : -10]
    assert (moved[..., 0] + 1.2).abs().median() < 0.1
    assert moved[..., 1].abs().median() < 0.6


def test_where_there_is_nothing_to_follow_there_is_still_an_answer():
    at, alike = follow(stripes(0.0), stripes(1.2), identity())
    assert torch.isfinite(at).all()
    assert torch.isnan(alike[:, : WIDTH // 4]).all()


def test_a_large_shift_needs_the_guess():
    big = texture()
    first, second = window(big, 20, 20), window(big, 38, 29)
    guess = shifted_guess(first, second)
    assert torch.equal(guess[0, 0], torch.tensor([-18.0, -9.0], dtype=torch.float64))
    at, alike = follow(first, second, guess)
    inside = (slice(16, -4), slice(24, -4))
    assert ((at - identity())[inside] + torch.tensor([18.0, 9.0])).norm(dim=-1).median() < 0.1
    assert torch.isnan(alike[0, 0]), "that corner has left the picture"


def test_brightness_and_contrast_may_change():
    big = texture()
    first, second = window(big, 20, 20), 0.6 * window(big, 21.3, 19.2) + 0.3
    at, alike = follow(first, second, identity())
    inner = (slice(8, -8), slice(8, -8))
    assert ((at - identity())[inner] + torch.tensor([1.3, -0.8])).norm(dim=-1).median() < 0.3
    assert alike[inner].nanmedian() > 0.9


def test_other_pictures_and_blank_ones_are_not_alike():
    first, second = window(texture(0), 20, 20), window(texture(1), 20, 20)
    _, alike = follow(first, second, identity())
    assert (alike[torch.isfinite(alike)] > 0.7).double().mean() < 0.25
    blank = torch.full((HEIGHT, WIDTH), 0.5, dtype=torch.float64)
    assert torch.isnan(likeness(blank, first, identity())).all()


def test_grey_of_colours():
    assert float(grey(torch.ones(2, 2, 3))[0, 0]) == pytest.approx(1.0)
    assert float(grey(torch.tensor([[[0.0, 1.0, 0.0]]]))) == pytest.approx(0.7152)
