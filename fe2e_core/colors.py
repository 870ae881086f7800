"""Colour maps for depth, errors and features, without a plotting library.

Sources of the numbers:
  spectral  the eleven-class "Spectral" scheme of ColorBrewer (C. Brewer, Apache-2.0), linear in between; 0 is
            dark red and 1 violet-blue. The paper's depth pictures use it with near = 0, so near is red.
  turbo     polynomial approximation published by Google Research with the map (A. Mikhailov and R. Du,
            Apache-2.0).
  viridis   polynomial fit by M. Zucker (public domain) to the CC0 map of N. Smith and S. van der Walt.
  rainbow   gnuplot's rgbformulae 33,13,10: (|2x - 1/2|, sin(pi x), cos(pi x / 2)); the map of the paper's
            Fig. 3.
  grey      the identity.
"""

from __future__ import annotations

import math

import torch

from .geometry import encode_normal

COLOR_MAPS = ("spectral", "turbo", "viridis", "grey", "rainbow")

_SPECTRAL = (
    (158, 1, 66),
    (213, 62, 79),
    (244, 109, 67),
    (253, 174, 97),
    (254, 224, 139),
    (255, 255, 191),
    (230, 245, 152),
    (171, 221, 164),
    (102, 194, 165),
    (50, 136, 189),
    (94, 79, 162),
)
# One row per power of x, starting with the constant; columns are red, green, blue.
_TURBO = (
    (0.13572138, 0.09140261, 0.10667330),
    (4.61539260, 2.19418839, 12.64194608),
    (-42.66032258, 4.84296658, -60.58204836),
    (132.13108234, -14.18503333, 110.36276771),
    (-152.94239396, 4.27729857, -89.90310912),
    (59.28637943, 2.82956604, 27.34824973),
)
_VIRIDIS = (
    (0.2777273272234177, 0.005407344544966578, 0.3340998053353061),
    (0.1050930431085774, 1.404613529898575, 1.384590162594685),
    (-0.3308618287255563, 0.214847559468213, 0.09509516302823659),
    (-4.634230498983486, -5.799100973351585, -19.33244095627987),
    (6.228269936347081, 14.17993336680509, 56.69055260068105),
    (4.776384997670288, -13.74514537774601, -65.35303263337234),
    (-5.435455855934631, 4.645852612178535, 26.3124352495832),
)


def apply_color_map(values: torch.Tensor, name: str, *, reverse: bool = False) -> torch.Tensor:
    """(...) values in [0, 1] -> (..., 3) colours in [0, 1], float32. Values outside are clamped, NaN counts
    as 0.

    `reverse` runs the map from its other end. Raises ValueError for an unknown name.
    """
    x = torch.nan_to_num(values.to(torch.float32), nan=0.0, posinf=1.0, neginf=0.0).clamp(0.0, 1.0)
    if reverse:
        x = 1.0 - x
    if name == "grey":
        return x.unsqueeze(-1).expand(*x.shape, 3).contiguous()
    if name == "spectral":
        return _interpolate(x, _SPECTRAL)
    if name == "turbo":
        return _polynomial(x, _TURBO)
    if name == "viridis":
        return _polynomial(x, _VIRIDIS)
    if name == "rainbow":
        channels = ((2.0 * x - 0.5).abs(), torch.sin(math.pi * x), torch.cos(0.5 * math.pi * x))
        return torch.stack(channels, dim=-1).clamp(0.0, 1.0)
    raise ValueError(f"colour map: found {name!r}, expected one of {', '.join(COLOR_MAPS)}")


def _interpolate(x: torch.Tensor, anchors: tuple[tuple[int, int, int], ...]) -> torch.Tensor:
    table = torch.tensor(anchors, dtype=torch.float32, device=x.device) / 255.0
    position = x * (len(anchors) - 1)
    left = position.floor().clamp(max=len(anchors) - 2)
    weight = (position - left).unsqueeze(-1)
    index = left.long()
    return torch.lerp(table[index], table[index + 1], weight)


def _polynomial(x: torch.Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> torch.Tensor:
    x = x.unsqueeze(-1)
    result = torch.zeros_like(x).expand(*x.shape[:-1], 3)
    for row in reversed(coefficients):
        result = result * x + torch.tensor(row, dtype=torch.float32, device=x.device)
    return result.clamp(0.0, 1.0)


def parse_color(text: str, name: str = "colour") -> tuple[float, float, float]:
    """ "black", "white", "grey" or "#rrggbb" -> red, green, blue in [0, 1]. Raises ValueError, naming the input
    `name`, for anything else."""
    names = {"black": "000000", "white": "ffffff", "grey": "808080", "gray": "808080"}
    digits = names.get(text.strip().lower(), text.strip().lower().removeprefix("#"))
    if len(digits) != 6 or any(c not in "0123456789abcdef" for c in digits):
        raise ValueError(f"{name}: found {text!r}, expected black, white, grey or #rrggbb such as #8080ff")
    red, green, blue = (int(digits[i : i + 2], 16) / 255.0 for i in (0, 2, 4))
    return red, green, blue


def normal_picture(
    normal: torch.Tensor,
    mask: torch.Tensor,
    convention: str,
    background: tuple[float, float, float] | None = None,
) -> torch.Tensor:
    """OpenCV normals (B,H,W,3) -> colours (B,H,W,3) in [0, 1] of a named convention
    (geometry.NORMAL_CONVENTIONS).

    Where the (B,H,W) `mask` is false the picture shows `background`; None stands for the colour of a surface
    that faces the camera in that convention, which lights and ControlNets take as "nothing special here".
    """
    colours = encode_normal(normal.to(torch.float32), convention)
    if background is None:
        fill = encode_normal(torch.tensor([0.0, 0.0, -1.0], device=normal.device), convention)
    else:
        fill = torch.tensor(background, dtype=torch.float32, device=normal.device)
    return torch.where(mask.to(normal.device).unsqueeze(-1), colours, fill)
