"""From an image of any size to a size the network takes, and back to exactly the image's size.

The network works on 2x2 patches of a latent that is eight times smaller than the picture, so both sides must
be multiples of 16. `fit` chooses the size, `to_model` and `from_model` resample; all three are deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

TILE = 16
"""Sides must be multiples of this: VAE factor 8 times patch size 2."""

TRAINED_PIXELS = 1024 * 768
"""Pixel budget of the released weights."""

MAX_UPSCALE = 8.0
"""A tiny input is never enlarged further than this: more pixels would only be invented ones."""

ASPECT_TOLERANCE = 0.08
"""Largest stretch (ratio of the two scales, minus one) accepted to avoid padding."""

MODES = ("trained", "native", "longest_side", "reference")


@dataclass(frozen=True)
class Frame:
    """How an input of `height` x `width` pixels becomes a model input.

    The picture is resampled to `resized_height` x `resized_width`, which lies in the top left corner of the
    `padded_height` x `padded_width` model input; the rest repeats its last row and column. `antialias` says
    whether shrinking averages all covered pixels (true everywhere but in the mode "reference").
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    padded_height: int
    padded_width: int
    antialias: bool = True


def fit(
    height: int,
    width: int,
    mode: str = "trained",
    *,
    pixels: int = TRAINED_PIXELS,
    longest_side: int = 1024,
) -> Frame:
    """Choose the model size for an image of `height` x `width` pixels.

    Modes:
      "trained"       about `pixels` in all (the size the network was trained at), the aspect kept as well as
                      multiples of 16 allow (at most 8 % stretch; a picture for which no such size exists
                      keeps its proportions and is padded). Small images are enlarged to the budget too,
                      because the network has only seen that size, but at most eightfold.
      "native"        every pixel as it is, padded to multiples of 16, never cut.
      "longest_side"  the longer side becomes `longest_side` (rounded to a multiple of 16), the other follows.
      "reference"     the fixed sizes (width x height) of the released evaluation, aspect ignored: up to
                      1024x768 -> 1024x768, up to 1280x960 -> 1216x352, everything larger -> 864x576;
                      bilinear, no antialiasing.

    Raises ValueError for sizes below 1, an unknown mode, or a budget that holds no tile of 16x16 pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"image size: found {width}x{height}, expected at least 1x1; connect an image that has pixels"
        )
    if mode == "trained":
        if pixels < TILE * TILE:
            raise ValueError(
                f"pixels: found {pixels}, expected at least {TILE * TILE}, one tile of the network"
            )
        return _within_budget(height, width, pixels)
    if mode == "native":
        return Frame(height, width, height, width, _ceil(height), _ceil(width))
    if mode == "longest_side":
        if longest_side < TILE:
            raise ValueError(f"longest_side: found {longest_side}, expected at least {TILE}")
        scale = max(TILE, round(longest_side / TILE) * TILE) / max(height, width)
        (h, ph), (w, pw) = _nearest_or_padded(height * scale), _nearest_or_padded(width * scale)
        return Frame(height, width, h, w, ph, pw)
    if mode == "reference":
        if width <= 1024 and height <= 768:
            w, h = 1024, 768
        elif width <= 1280 and height <= 960:
            w, h = 1216, 352
        else:
            w, h = 864, 576
        return Frame(height, width, h, w, h, w, antialias=False)
    raise ValueError(f"mode: found {mode!r}, expected one of {', '.join(MODES)}")


def to_model(image: torch.Tensor, frame: Frame) -> torch.Tensor:
    """(B, height, width, C) -> (B, padded_height, padded_width, C), float32, same range."""
    if image.ndim != 4 or tuple(image.shape[1:3]) != (frame.height, frame.width):
        raise ValueError(
            f"image: found shape {tuple(image.shape)}, expected (B, {frame.height}, {frame.width}, C); "
            "make the frame with fit(height, width) of this very image"
        )
    x = image.to(torch.float32).movedim(-1, 1)
    x = _resample(x, frame.resized_height, frame.resized_width, frame.antialias)
    right, below = frame.padded_width - frame.resized_width, frame.padded_height - frame.resized_height
    if right or below:
        x = F.pad(x, (0, right, 0, below), mode="replicate")
    return x.movedim(1, -1).contiguous()


def from_model(values: torch.Tensor, frame: Frame) -> torch.Tensor:
    """(B, padded_height, padded_width[, C]) -> (B, height, width[, C]), float32: padding cut off, then
    resampled.

    Interpolated unit vectors are shorter than one: the caller renormalises them.
    """
    if values.ndim not in (3, 4) or tuple(values.shape[1:3]) != (frame.padded_height, frame.padded_width):
        raise ValueError(
            f"model output: found shape {tuple(values.shape)}, "
            f"expected (B, {frame.padded_height}, {frame.padded_width}) or the same with channels last"
        )
    x = values[:, : frame.resized_height, : frame.resized_width].to(torch.float32)
    x = x.unsqueeze(1) if values.ndim == 3 else x.movedim(-1, 1)
    x = _resample(x, frame.height, frame.width, frame.antialias)
    return (x.squeeze(1) if values.ndim == 3 else x.movedim(1, -1)).contiguous()


def _resample(x: torch.Tensor, height: int, width: int, antialias: bool) -> torch.Tensor:
    """Bilinear (B, C, H, W), half-pixel centres; averages when shrinking if asked."""
    if tuple(x.shape[-2:]) == (height, width):
        return x
    shrinking = height < x.shape[-2] or width < x.shape[-1]
    device = x.device
    if antialias and shrinking and device.type == "mps":
        x = x.cpu()  # the antialiased kernel is missing on MPS in several torch versions
    x = F.interpolate(
        x.contiguous(),
        (height, width),
        mode="bilinear",
        align_corners=False,
        antialias=antialias and shrinking,
    )
    return x.to(device)


def _within_budget(height: int, width: int, pixels: int) -> Frame:
    scale = min(math.sqrt(pixels / (height * width)), MAX_UPSCALE)
    ideal_h, ideal_w = height * scale, width * scale
    best: tuple[float, int, int] | None = None
    for h in _multiples_near(ideal_h):
        for w in _multiples_near(ideal_w):
            stretch = abs(math.log((h / height) / (w / width)))
            if h * w > pixels or stretch > math.log1p(ASPECT_TOLERANCE):
                continue
            loss = stretch + 0.25 * abs(math.log(h * w / (ideal_h * ideal_w)))
            if best is None or loss < best[0]:
                best = (loss, h, w)
    if best is not None:
        return Frame(height, width, best[1], best[2], best[1], best[2])
    # Long strips and tiny pictures: keep the proportions, pad by less than one tile a side. The longer side
    # is shortened until the padded size fits, at the latest when it is a single tile.
    longer = _ceil(max(1, round(max(ideal_h, ideal_w))))
    h, w = max(1, round(ideal_h)), max(1, round(ideal_w))
    while _ceil(h) * _ceil(w) > pixels and longer > TILE:
        longer -= TILE
        ratio = longer / max(ideal_h, ideal_w)
        h, w = max(1, round(ideal_h * ratio)), max(1, round(ideal_w * ratio))
    return Frame(height, width, h, w, _ceil(h), _ceil(w))


def _multiples_near(size: float) -> list[int]:
    below = int(size // TILE) * TILE
    return [m for m in (below - TILE, below, below + TILE) if m >= TILE]


def _nearest_or_padded(size: float) -> tuple[int, int]:
    """(resized, padded): the nearest multiple of 16 where that stretches little, else the true length,
    padded."""
    nearest = max(TILE, round(size / TILE) * TILE)
    if abs(math.log(nearest / size)) <= math.log1p(ASPECT_TOLERANCE):
        return nearest, nearest
    exact = max(1, round(size))
    return exact, _ceil(exact)


def _ceil(size: int) -> int:
    return -(-size // TILE) * TILE
