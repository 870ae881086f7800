"""Clay: the normals alone, lit by a lamp that can be moved. The quickest way to see whether a surface is
right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lamp:
    """A lamp in front of the picture.

    `x`, `y` in parts of the picture's width and height from its top left corner (values outside stand beside
    it); `distance` in front of it, in picture widths: small values model, large ones light evenly. `ambient`
    is the light of the shadows and `gloss` the strength of highlights, both in [0,1]. `color` is the clay's,
    sRGB in [0,1].
    """

    x: float = 0.25
    y: float = 0.1
    distance: float = 0.6
    ambient: float = 0.15
    gloss: float = 0.15
    color: tuple[float, float, float] = (0.82, 0.78, 0.74)

    def __post_init__(self) -> None:
        if not self.distance > 0:
            raise ValueError(f"distance: found {self.distance}, expected a positive number of picture widths")
        if not (0 <= self.ambient <= 1 and 0 <= self.gloss <= 1):
            raise ValueError(
                f"ambient, gloss: found {self.ambient} and {self.gloss}, expected values in [0, 1]"
            )


def clay(
    normal: Tensor, mask: Tensor | None = None, lamp: Lamp | None = None, background: float = 0.0
) -> Tensor:
    """OpenCV normals (B,H,W,3) -> a picture (B,H,W,3) in [0,1] of a matt surface under `lamp`.

    Every pixel is lit from its own direction to the lamp, with the picture taken as a plane: no depth is
    needed, and moving the lamp moves the shading as a hand-held light would. Lambert's cosine law plus a
    Blinn highlight, in linear light, shown with gamma 2.2. Where `mask` (B,H,W) is false the grey
    `background` shows.
    """
    lamp = lamp or Lamp()
    n = normal.to(torch.float32)
    height, width = n.shape[1:3]
    u = (torch.arange(width, device=n.device) + 0.5) / width
    v = (torch.arange(height, device=n.device) + 0.5) / height
    to_lamp = torch.stack(
        [
            (lamp.x - u).expand(height, width),
            ((lamp.y - v) * height / width)[:, None].expand(height, width),
            torch.full((height, width), -lamp.distance, device=n.device),  # toward the camera is -z
        ],
        dim=-1,
    )
    to_lamp = torch.nn.functional.normalize(to_lamp, dim=-1)
    diffuse = (n * to_lamp).sum(-1).clamp_min(0)
    halfway = torch.nn.functional.normalize(to_lamp + to_lamp.new_tensor([0.0, 0.0, -1.0]), dim=-1)
    highlight = (n * halfway).sum(-1).clamp_min(0) ** 40 * (diffuse > 0)
    base = torch.tensor(lamp.color, device=n.device) ** 2.2
    light = base * (lamp.ambient + (1 - lamp.ambient) * diffuse).unsqueeze(
        -1
    ) + lamp.gloss * highlight.unsqueeze(-1)
    picture = light.clamp(0, 1) ** (1 / 2.2)
    if mask is not None:
        picture = torch.where(mask.to(n.device).unsqueeze(-1), picture, torch.full_like(picture, background))
    return picture
