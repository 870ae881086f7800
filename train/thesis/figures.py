"""The figures of docs/thesis.md: loss curves (paper, Fig. 4), block features (Fig. 3), and what was edited and estimated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor

from fe2e_core.colors import apply_color_map
from fe2e_core.geometry import encode_normal
from train.curves import smoothed
from train.plot import Curve, draw_curves
from train.thesis.edits import EDITS
from train.thesis.features import BLOCKS
from train.thesis.network import EDITOR, GENERATOR

_SMOOTH = 0.95
_GAP, _LABEL, _FONT = 6, 20, 14
_PAPER, _INK = (255, 255, 255), (34, 34, 34)


def mean_curve(name: str, losses: Sequence[Sequence[float]]) -> Curve:
    """The mean over seeds, step by step, and its moving average."""
    y = np.array(losses).mean(0)
    return Curve(name, np.arange(1, len(y) + 1, dtype=np.float64), y, smoothed(y, _SMOOTH))


def draw_losses(data: dict[str, Any], pairs: Sequence[tuple[str, str]], path: Path, title: str) -> bool:
    """The training loss of rows, (row, name in the legend), over the seeds that all of them have. False without any."""
    found = [{key.split("/")[1] for key in data["runs"] if key.startswith(f"{row}/")} for row, _ in pairs]
    seeds = sorted(set.intersection(*found), key=int) if found else []
    if not seeds:
        return False
    curves = [mean_curve(name, [data["runs"][f"{row}/{seed}"]["loss"] for seed in seeds]) for row, name in pairs]
    steps = float(curves[0].x[-1])
    draw_curves(curves, path, f"{title}, mean of {len(seeds)} seeds", begin=steps / 6, inset=steps / 3)
    return True


def _large(picture: Tensor, width: int, smooth: bool = False) -> Tensor:
    """(H,W,3) -> `width` pixels wide, pixels repeated (or interpolated)."""
    size = (round(picture.shape[0] * width / picture.shape[1]), width)
    mode = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest-exact"}
    return F.interpolate(picture.permute(2, 0, 1)[None].float(), size=size, **mode)[0].permute(1, 2, 0)


def draw_grid(
    grid: Sequence[Sequence[Tensor | None]], columns: Sequence[str], lines: Sequence[str], path: Path, width: int = 128,
    smooth: bool = False,
) -> None:
    """Pictures (H,W,3) in [0,1] as a table with headings, PNG or JPEG by the name. Replaces an earlier file whole."""
    height = max(_large(p, width).shape[0] for row in grid for p in row if p is not None)
    font = ImageFont.load_default(_FONT)
    margin = 12 + max(int(font.getlength(part)) for line in lines for part in line.split("\n"))
    canvas = Image.new("RGB", (margin + len(columns) * (width + _GAP), _LABEL + len(lines) * (height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, text in enumerate(columns):
        draw.text((margin + column * (width + _GAP) + width / 2, 3), text, fill=_INK, font=font, anchor="ma")
    for line, text in enumerate(lines):
        top = _LABEL + line * (height + _GAP)
        draw.text((margin - 8, top + height / 2), text, fill=_INK, font=font, anchor="rm", align="right")
        for column, picture in enumerate(grid[line]):
            if picture is not None:
                pixels = (_large(picture, width, smooth).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
                canvas.paste(Image.fromarray(pixels), (margin + column * (width + _GAP), top))
    temporary = path.with_name(f".{path.name}.part")
    canvas.save(temporary, "JPEG" if path.suffix == ".jpg" else "PNG", quality=90)
    os.replace(temporary, path)


def draw_features(data: dict[str, Any], pictures: Sequence[Tensor], path: Path) -> bool:
    """Feature maps of both bases before and after (Fig. 3), each map on its own scale. pictures: the scenes (H,W,3).
    False when there is none yet."""
    if not {EDITOR, GENERATOR} <= set(data["maps"]):
        return False
    grid, lines = [], []
    for when, says in (("before", "before"), ("after", "after")):
        for base in (EDITOR, GENERATOR):
            row: list[Tensor | None] = []
            for number, picture in enumerate(pictures):
                row.append(picture)
                for values in data["maps"][base][when][number]:
                    values = torch.tensor(values)
                    low, high = values.min(), values.max()
                    row.append(apply_color_map((values - low) / (high - low).clamp_min(1e-12), "rainbow"))
            grid.append(row)
            lines.append(f"{base},\n{says}")
    draw_grid(grid, ("picture", *BLOCKS) * len(pictures), lines, path, smooth=True)
    return True


def draw_bases(folder: Path, path: Path) -> bool:
    """What the bases can do on pairs they have not seen: source, true edit, the editor's, and pictures of the generator.
    False when their pictures are not in `folder`."""
    files = {name: folder / f"{name}.safetensors" for name in ("pairs-source", "pairs-target", "base-editor", "base-generator")}
    if not all(file.is_file() for file in files.values()):
        return False
    shown = {name: load_file(file)["made"].permute(0, 2, 3, 1) / 2 + 0.5 for name, file in files.items()}
    count = min(len(value) for value in shown.values())
    grid = [[value[i] for i in range(count)] for value in shown.values()]
    lines = ("source", "true edit", "the editor's", "the generator's")
    draw_grid(grid, [EDITS[i % len(EDITS)] for i in range(count)], lines, path, 96)
    return True


def draw_estimates(
    folder: Path, truth: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], rows: Sequence[tuple[str, str, str]], path: Path
) -> bool:
    """Held-out scenes as columns: picture, true label and normals, and those of `rows`: (row, title, labels' scheme).

    truth: (picture (H,W,3), label (H,W), normals (H,W,3) OpenCV, valid (H,W)) of each. Labels are drawn as they are,
    inverse ones turned round; sky is grey in the truth alone. False when there is nothing in `folder`."""
    grey = torch.tensor(0.35)

    def label_colours(label: Tensor) -> Tensor:
        return apply_color_map(label / 2 + 0.5, "spectral")

    grid: list[list[Tensor | None]] = [
        [picture for picture, *_ in truth],
        [torch.where(valid[..., None] > 0, label_colours(label), grey) for _, label, _, valid in truth],
        [torch.where(valid[..., None] > 0, encode_normal(normal, "OpenGL"), grey) for *_, normal, valid in truth],
    ]
    lines = ["picture", "true label (log)", "true normals"]
    for name, title, scheme in rows:
        file = folder / f"row-{name}.safetensors"
        if not file.is_file():
            continue
        found = load_file(file)
        if "label" in found:
            grid.append([label_colours(-x if scheme == "inverse" else x) for x in found["label"]])
            lines.append(title)
        if "normal" in found:
            grid.append([encode_normal(x, "OpenGL") for x in found["normal"]])
            lines.append(title + ("" if "normal" in title else ", normals"))
    if len(grid) == 3:
        return False
    draw_grid(grid, [f"{i + 1}" for i in range(len(truth))], lines, path, 112)
    return True
