"""What can be said of a photograph's geometry without a measurement: near is near, floors lie, walls stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gallery_pictures import Photograph

_RADIUS = 0.02
"""Half the side of the window around a point, as a share of the picture's shorter side."""
_UPRIGHT = 0.5
"""Sine of the slant beyond which a surface lies and below which it stands, in the camera's axes: 30 degrees."""


@dataclass(frozen=True)
class Verdict:
    """wrong: "nearer < farther" that came out the other way; slanted: what should lie or stand and does not. guessed: how
    many pairs a guess gets right that calls nearer what is lower in the picture."""

    pairs: int
    wrong: tuple[str, ...]
    guessed: int
    surfaces: int
    slanted: tuple[str, ...]

    @property
    def ordered(self) -> int:
        return self.pairs - len(self.wrong)

    @property
    def upright(self) -> int:
        return self.surfaces - len(self.slanted)

    def sentence(self) -> str:
        """In words, failures by name."""
        text = f"Nearer and farther: {self.ordered} of {self.pairs} pairs right"
        text += f"; wrong: {', '.join(self.wrong)}" if self.wrong else ""
        if self.surfaces:
            text += f". Lying and standing: {self.upright} of {self.surfaces}"
            text += f"; wrong: {', '.join(self.slanted)}" if self.slanted else ""
        return text + "."


def judge(about: Photograph, log_depth: Tensor, normal: Tensor) -> Verdict:
    """(H,W) log-depth, larger is farther, and (H,W,3) normals in OpenCV axes against what the photograph shows. A point
    stands for the median depth and the mean normal of a small window around it."""
    depth = {name: float(_window(log_depth, place).median()) for name, place in about.points.items()}
    wrong = [f"{near} < {far}" for near, far in about.pairs if not depth[near] < depth[far]]
    guessed = sum(about.points[near][1] > about.points[far][1] for near, far in about.pairs)
    slanted = []
    for name in (*about.lying, *about.standing):
        mean = torch.nn.functional.normalize(_window(normal, about.points[name]).reshape(-1, 3).mean(dim=0), dim=0)
        if (float(mean[1]) < -_UPRIGHT) != (name in about.lying) or float(mean[1]) > _UPRIGHT:
            slanted.append(name)
    return Verdict(len(about.order), tuple(wrong), guessed, len(about.lying) + len(about.standing), tuple(slanted))


def _window(values: Tensor, place: tuple[float, float]) -> Tensor:
    """The values (H,W,...) around (x, y), shares of width and height."""
    height, width = values.shape[:2]
    radius = max(1, round(_RADIUS * min(height, width)))
    column, row = (min(int(share * side), side - 1) for share, side in zip(place, (width, height), strict=True))
    return values[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]


def table(judged: Sequence[tuple[str, Verdict]]) -> list[str]:
    """Markdown lines: a row a photograph and their sum."""
    lines = ["| photograph | pairs in the right order | by \"lower is nearer\" | surfaces that lie or stand as they should |",
             "|---|---:|---:|---:|"]  # fmt: skip
    for title, v in judged:
        surfaces = f"{v.upright} of {v.surfaces}" if v.surfaces else "-"
        lines.append(f"| {title} | {v.ordered} of {v.pairs} | {v.guessed} | {surfaces} |")
    totals = [sum(getattr(v, name) for _, v in judged) for name in ("ordered", "pairs", "guessed", "upright", "surfaces")]
    lines.append(f"| all | {totals[0]} of {totals[1]} | {totals[2]} | {totals[3]} of {totals[4]} |")
    return lines
