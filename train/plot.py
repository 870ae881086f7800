"""Line plots as PNG with Pillow alone: curves over steps, a legend, and an inset for the beginning."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f6fb4", "#d9480f", "#2f8f3f", "#8a3fa0", "#b8860b", "#0b8f8f", "#c2255c", "#555555")
_SCALE = 2  # drawn larger, then averaged
_WIDTH, _HEIGHT = 1000, 620
_LEFT, _RIGHT, _BOTTOM = 84, 24, 56
_INK, _GRID, _PAPER = "#222222", "#e4e4e4", "#ffffff"


@dataclass(frozen=True)
class Curve:
    """One line: `x` and `y` (N,) float64, x growing; `smooth` (N,), drawn over a pale y."""

    name: str
    x: np.ndarray
    y: np.ndarray
    smooth: np.ndarray


@dataclass(frozen=True)
class _Window:
    """What of the plane is shown: logarithmic heights are exponents of ten."""

    left: float
    right: float
    low: float
    high: float
    logarithmic: bool

    def column(self, x: np.ndarray, width: int) -> np.ndarray:
        return (x - self.left) / (self.right - self.left) * width

    def row(self, y: np.ndarray, height: int) -> np.ndarray:
        if self.logarithmic:
            y = np.log10(np.maximum(y, 1e-300))
        # far beyond the picture, a line is cut off there
        return np.clip((self.high - y) / (self.high - self.low), -1, 2) * height


def _window(curves: Sequence[Curve], begin: float, end: float, logarithmic: bool) -> _Window:
    """The window that shows the smooth curves from `begin` to `end`. ValueError when nothing is there."""
    shown = [curve.smooth[(curve.x >= begin) & (curve.x <= end)] for curve in curves]
    values = np.concatenate([part[np.isfinite(part)] for part in shown]) if shown else np.empty(0)
    if logarithmic:
        values = np.log10(values[values > 0])
    if not len(values):
        raise ValueError(f"there is nothing to draw between the steps {begin:g} and {end:g}")
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    last = max(float(curve.x[-1]) for curve in curves if len(curve.x))
    right = min(end, last)
    return _Window(begin, right if right > begin else begin + 1, low - room, high + room, logarithmic)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from low to high, about `count`."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


def _panel(curves: Sequence[Curve], window: _Window, width: int, height: int) -> Image.Image:
    """Grid and curves of one window, `width` x `height` already scaled."""
    panel = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(panel)
    for x in ticks(window.left, window.right):
        column = float(window.column(np.array(x), width))
        draw.line([(column, 0), (column, height)], fill=_GRID, width=_SCALE)
    for y in ticks(window.low, window.high):
        row = (window.high - y) / (window.high - window.low) * height
        draw.line([(0, row), (width, row)], fill=_GRID, width=_SCALE)
    for pale in (True, False):
        for curve, colour in zip(curves, _colours(len(curves)), strict=True):
            y = curve.y if pale else curve.smooth
            shown = np.isfinite(y) & (curve.x >= window.left) & (curve.x <= window.right)
            columns, rows = window.column(curve.x[shown], width), window.row(y[shown], height)
            points = list(zip(columns.tolist(), rows.tolist(), strict=True))
            if len(points) == 1:
                (x, y0), r = points[0], 3 * _SCALE
                draw.ellipse([x - r, y0 - r, x + r, y0 + r], fill=colour)
            elif points:
                fill = _paler(colour) if pale else colour
                draw.line(points, fill=fill, width=(1 if pale else 2) * _SCALE, joint="curve")
    draw.rectangle([0, 0, width - 1, height - 1], outline=_INK, width=_SCALE)
    return panel


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _paler(colour: str) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * 0.28):02x}" for part in parts)


def _label(value: float, logarithmic: bool) -> str:
    return f"{10.0**value:.3g}" if logarithmic else f"{value:g}" if abs(value) < 1e6 else f"{value:.3g}"


def _axes(
    canvas: Image.Image, window: _Window, place: tuple[int, int], size: tuple[int, int], font_size: int
) -> None:
    """Numbers left of and below a panel that lies at `place`."""
    draw, font = ImageDraw.Draw(canvas), _font(font_size)
    gap = 6 * _SCALE
    for x in ticks(window.left, window.right):
        column = place[0] + float(window.column(np.array(x), size[0]))
        draw.text((column, place[1] + size[1] + gap), f"{x:,.0f}", fill=_INK, font=font, anchor="ma")
    for y in ticks(window.low, window.high):
        row = place[1] + (window.high - y) / (window.high - window.low) * size[1]
        draw.text((place[0] - gap, row), _label(y, window.logarithmic), fill=_INK, font=font, anchor="rm")


def draw_curves(
    curves: Sequence[Curve],
    path: str | os.PathLike[str],
    title: str,
    begin: float = 0,
    end: float = math.inf,
    inset: float = 0,
    logarithmic: bool = False,
) -> None:
    """Write the plot; an earlier file is replaced, whole or not at all.

    begin, end: the steps shown. inset: the steps up to here on a scale of their own, in the upper right
    corner; 0 for none. Raises ValueError when there is nothing to draw."""
    canvas = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    window = _window(curves, begin, end, logarithmic)
    top = _legend(draw, curves, title)
    place = (_LEFT * _SCALE, top)
    size = ((_WIDTH - _LEFT - _RIGHT) * _SCALE, (_HEIGHT - _BOTTOM) * _SCALE - top)
    canvas.paste(_panel(curves, window, *size), place)
    _axes(canvas, window, place, size, 13)
    draw.text((place[0] + size[0], (_HEIGHT - 10) * _SCALE), "optimizer step", fill=_INK, font=_font(13), anchor="rs")

    if inset:
        small = _window(curves, 0, inset, logarithmic)
        extent = (size[0] * 2 // 5, size[1] * 2 // 5)
        corner = (place[0] + size[0] - extent[0] - 12 * _SCALE, place[1] + 12 * _SCALE)
        margin = (56 * _SCALE, 24 * _SCALE)
        draw.rectangle([corner[0] - margin[0], corner[1] - 6 * _SCALE, corner[0] + extent[0] + 6 * _SCALE,
                        corner[1] + extent[1] + margin[1]], fill=_PAPER)  # fmt: skip
        canvas.paste(_panel(curves, small, *extent), corner)
        _axes(canvas, small, corner, extent, 11)

    target = Path(path)
    temporary = target.with_name(f".{target.name}.part")
    canvas.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(temporary, "PNG")
    os.replace(temporary, target)


def _legend(draw: ImageDraw.ImageDraw, curves: Sequence[Curve], title: str) -> int:
    """The title, and right of it the names with their colours, in as many lines as they need; returns where the plot
    may begin."""
    font, line, gap = _font(13), 20 * _SCALE, 18 * _SCALE
    begin = _LEFT * _SCALE + draw.textlength(title, font=_font(17)) + 2 * gap
    end = (_WIDTH - _RIGHT) * _SCALE
    draw.text((_LEFT * _SCALE, 12 * _SCALE), title, fill=_INK, font=_font(17))
    x, y = begin, 24 * _SCALE
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        wide = 32 * _SCALE + draw.textlength(curve.name, font=font)
        if x > begin and x + wide > end:
            x, y = begin, y + line
        draw.line([(x, y), (x + 24 * _SCALE, y)], fill=colour, width=3 * _SCALE)
        draw.text((x + 32 * _SCALE, y), curve.name, fill=_INK, font=font, anchor="lm")
        x += wide + gap
    return y + line
