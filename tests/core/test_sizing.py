from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fe2e_core import sizing
from fe2e_core.sizing import fit, from_model, to_model

ODD = [(1, 1), (7, 13), (4097, 33), (33, 4097), (16, 16), (480, 640), (1080, 1920), (3024, 4032)]


@pytest.mark.parametrize("size", ODD)
@pytest.mark.parametrize("mode", sizing.MODES)
def test_any_size_comes_back_exactly(size, mode):
    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    frame = fit(*size, mode, pixels=96 * 128, longest_side=128)
    model = to_model(image, frame)
    assert model.dtype == torch.float32
    assert model.shape[1] % 16 == 0
    assert model.shape[2] % 16 == 0
    assert model.min() >= 0
    assert model.max() <= 1
    assert tuple(from_model(model, frame).shape) == (1, *size, 3)
    assert tuple(from_model(model[..., 0], frame).shape) == (1, *size)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([96 * 128, 1024 * 768]))
@settings(max_examples=300, deadline=None)
def test_trained_keeps_budget_and_aspect(height, width, pixels):
    frame = fit(height, width, "trained", pixels=pixels)
    assert frame.padded_height * frame.padded_width <= pixels
    scales = frame.resized_height / height, frame.resized_width / width
    short = min(frame.resized_height, frame.resized_width)
    # sides are whole pixels: one of s pixels can be off by half a pixel, and a hair of one pixel stays one
    # pixel
    assert max(scales) / min(scales) <= 1.081 * short / (short - 0.51) or short == 1
    assert frame.resized_height < height * sizing.MAX_UPSCALE * 1.09 + 16
    assert frame.resized_width < width * sizing.MAX_UPSCALE * 1.09 + 16


def test_trained_uses_the_trained_size():
    assert (fit(3024, 4032).padded_height, fit(3024, 4032).padded_width) == (768, 1024)
    assert (fit(240, 320).padded_height, fit(240, 320).padded_width) == (768, 1024)
    wide = fit(1080, 1920)
    assert wide.padded_height * wide.padded_width > 0.93 * sizing.TRAINED_PIXELS


def test_native_keeps_every_pixel():
    image = torch.rand(2, 7, 13, 3)
    frame = fit(7, 13, "native")
    model = to_model(image, frame)
    assert model.shape == (2, 16, 16, 3)
    assert torch.equal(model[:, :7, :13], image)
    assert torch.equal(model[:, 7:, :13], image[:, 6:7].expand(-1, 9, -1, -1)), "padding repeats the last row"
    assert torch.equal(from_model(model, frame), image)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((768, 1024), (768, 1024)),
        ((480, 640), (768, 1024)),
        ((375, 1242), (352, 1216)),
        ((960, 1280), (352, 1216)),
        ((4032, 6048), (576, 864)),
        ((1024, 768), (576, 864)),
    ],
)
def test_reference_sizes(size, expected):
    frame = fit(*size, "reference")
    assert (frame.padded_height, frame.padded_width) == expected
    image = torch.rand(1, *size, 3)
    plain = torch.nn.functional.interpolate(
        image.movedim(-1, 1), expected, mode="bilinear", align_corners=False
    )
    assert torch.equal(to_model(image, frame).movedim(-1, 1), plain)


def test_shrinking_averages():
    """A fine checkerboard must become grey, not a moire of black and white."""
    board = ((torch.arange(1024)[:, None] + torch.arange(1024)[None]) % 2).float()
    frame = fit(1024, 1024, "longest_side", longest_side=112)
    model = to_model(board[None, :, :, None].expand(1, 1024, 1024, 3), frame)
    assert (model - 0.5).abs().max() < 0.05


def test_a_linear_ramp_survives_the_round_trip():
    ramp = torch.linspace(0, 1, 400)[None, None, :, None].expand(1, 300, 400, 3)
    frame = fit(300, 400)
    back = from_model(to_model(ramp, frame), frame)
    assert (back - ramp)[:, 2:-2, 2:-2].abs().max() < 1e-4


def test_clear_errors():
    with pytest.raises(ValueError, match="image size"):
        fit(0, 5)
    with pytest.raises(ValueError, match="mode"):
        fit(5, 5, "huge")
    with pytest.raises(ValueError, match="longest_side"):
        fit(5, 5, "longest_side", longest_side=3)
    with pytest.raises(ValueError, match="pixels"):
        fit(5, 5, pixels=10)
    with pytest.raises(ValueError, match="expected"):
        to_model(torch.zeros(1, 4, 5, 3), fit(5, 5))
    with pytest.raises(ValueError, match="expected"):
        from_model(torch.zeros(1, 4, 5, 3), fit(5, 5))
