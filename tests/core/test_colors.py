from __future__ import annotations

import pytest
import torch

from fe2e_core.colors import COLOR_MAPS, apply_color_map, normal_picture, parse_color

# Published values of the maps at 0, 1/2 and 1 (ColorBrewer; Google Research; the viridis table; gnuplot's
# formulae).
KNOWN = {
    "spectral": ((158, 1, 66), (255, 255, 191), (94, 79, 162)),
    "turbo": ((48, 18, 59), (164, 252, 60), (122, 4, 3)),
    "viridis": ((68, 1, 84), (33, 145, 140), (253, 231, 37)),
    "grey": ((0, 0, 0), (128, 128, 128), (255, 255, 255)),
    "rainbow": ((128, 0, 255), (128, 255, 180), (255, 0, 0)),
}


@pytest.mark.parametrize("name", COLOR_MAPS)
def test_known_colours(name):
    colours = apply_color_map(torch.tensor([0.0, 0.5, 1.0]), name) * 255
    # the turbo polynomial is published as an approximation, up to an eighth off at its blue end
    tolerance = 32 if name == "turbo" else 4
    assert (colours - torch.tensor(KNOWN[name], dtype=torch.float32)).abs().max() <= tolerance


@pytest.mark.parametrize("name", COLOR_MAPS)
def test_range_shape_reverse(name):
    values = torch.tensor([[-1.0, 0.2, 0.7], [2.0, float("nan"), 1.0]])
    colours = apply_color_map(values, name)
    assert colours.shape == (2, 3, 3)
    assert colours.dtype == torch.float32
    assert torch.isfinite(colours).all()
    assert colours.min() >= 0
    assert colours.max() <= 1
    ramp = torch.linspace(0, 1, 33)
    assert torch.allclose(
        apply_color_map(ramp, name, reverse=True), apply_color_map(ramp.flip(0), name), atol=1e-5
    )


def test_unknown_name():
    with pytest.raises(ValueError, match="jet"):
        apply_color_map(torch.zeros(2), "jet")


def test_parse_color():
    assert parse_color("#ff8000") == (1.0, pytest.approx(128 / 255), 0.0)
    assert parse_color("FFFFFF") == parse_color("white") == (1.0, 1.0, 1.0)
    for wrong in ("", "#12", "purple", "#12345g"):
        with pytest.raises(ValueError, match="colour"):
            parse_color(wrong)


# First principles, for a ball in front of the camera: what shows on its right side points right, and so on.
# Each row: does the channel get brighter toward the picture's right (red), its top (green), the camera
# (blue)?
BRIGHTER = {
    "OpenGL": (True, True, True),
    "DirectX": (True, False, True),
    "OpenCV": (True, False, False),
    "DSINE / BAE": (False, True, True),
}


@pytest.mark.parametrize("convention", BRIGHTER)
def test_ball_in_every_convention(convention):
    """Orthographic view of a unit ball: the outward normal at picture position (x right, y up) is (x, y,
    toward)."""
    size = 65
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    up, right = torch.meshgrid(-axis, axis, indexing="ij")
    inside = right**2 + up**2 < 0.95
    toward = (1 - right**2 - up**2).clamp_min(0).sqrt()
    opencv = torch.stack([right, -up, -toward], dim=-1)[None]  # x right, y down, z away from the camera
    picture = normal_picture(opencv, inside[None], convention)[0]
    for channel, (brighter, towards) in enumerate(
        zip(BRIGHTER[convention], (right, up, toward), strict=True)
    ):
        expected = (towards if brighter else -towards) * 0.5 + 0.5
        assert (picture[..., channel] - expected)[inside].abs().max() < 1e-5
    facing = torch.tensor([0.5, 0.5, 1.0 if BRIGHTER[convention][2] else 0.0])
    assert torch.allclose(picture[~inside], facing.expand_as(picture[~inside]))
    black = normal_picture(opencv, inside[None], convention, (0.0, 0.0, 0.0))[0]
    assert (black[~inside] == 0).all()
    assert torch.equal(black[inside], picture[inside])
