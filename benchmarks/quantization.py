"""The paper's quantisation study (section 3.4, appendix C): what a BF16 label costs depth, by scheme.

    python -m benchmarks.quantization [--write]

Table 1 recomputed beside the paper's numbers, then measured: depths are turned into labels, rounded to BF16, to nearest
and by truncation, and turned back. With --write the tables go into docs/quantization.md and the figure (the paper's
Fig. 6, and the logarithmic scheme) to docs/quantization.png. Pure arithmetic: seconds on any machine.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import ROOT, Table
from fe2e_core.colors import apply_color_map
from fe2e_core.comparison import side_by_side
from fe2e_core.files import Unfinished
from fe2e_core.quantization import (
    LabelRange,
    bf16_round,
    decode,
    encode,
    error_table,
    metric_range,
    percentile_range,
)

NEAR, FAR = 0.1, 80.0
SHOWN = ("uniform", "inverse", "log")
LADDER = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 50.0, 80.0)
MODES = ("truncate", "nearest")
DOCUMENT, PICTURE = ROOT / "docs" / "quantization.md", ROOT / "docs" / "quantization.png"

PRINTED = {
    ("uniform", FAR): ("16 cm", "0.002"),
    ("uniform", NEAR): ("16 cm", "1.600"),
    ("inverse", FAR): ("125 m", "1.563"),
    ("inverse", NEAR): ("0.2 mm", "0.002"),
    ("log", FAR): ("1.04 m", "0.013"),
    ("log", NEAR): ("1.3 mm", "0.013"),
}
"""The paper's Table 1."""

_SAMPLES = 200_001
_WORST_SHOWN = 0.2


@dataclass(frozen=True)
class Worst:
    """The largest error among depths within 5 % of one: metres, and relative to the depth; infinite where a label
    stands for no depth any more."""

    error: float
    abs_rel: float


def scheme_range(scheme: str) -> LabelRange:
    """The range of appendix C: uniform labels span 0 to 80 m, the others 0.1 to 80 m."""
    return metric_range(0.0 if scheme in ("uniform", "sqrt") else NEAR, FAR, scheme)


def worst_error(scheme: str, depth: float, mode: str) -> Worst:
    """Measured over 200,001 depths within 5 % of `depth` and inside NEAR to FAR, labels rounded in `mode`."""
    low, high = max(NEAR, depth / 1.05), min(FAR, depth * 1.05)
    depths = torch.linspace(low, high, _SAMPLES)
    back = decode(encode(depths, scheme_range(scheme), bf16=mode), scheme_range(scheme))
    error = (back - depths).abs().double()
    return Worst(float(error.max()), float((error / depths).max()))


def length(metres: float) -> str:
    """In the unit that a reader expects."""
    if metres == float("inf"):
        return "∞"
    if metres < 0.01:
        return f"{1000 * metres:.3f} mm"
    return f"{100 * metres:.2f} cm" if metres < 1 else f"{metres:.2f} m"


def paper_table() -> Table:
    """Table 1: printed, one whole step to first order as in appendix C, and the worst error measured in each mode."""
    rows = []
    for row in error_table(NEAR, FAR):
        printed = PRINTED.get((row.scheme, row.depth), ("-", "-"))
        measured = [worst_error(row.scheme, row.depth, mode) for mode in MODES]
        cells = [f"{row.scheme}, {row.depth:g} m", *printed, length(row.error), f"{row.abs_rel:.5f}"]
        for worst in measured:
            cells += [length(worst.error), f"{worst.abs_rel:.5f}"]
        rows.append(cells)
    header = ["", "paper: error", "AbsRel", "one step, recomputed", "AbsRel", "truncated, measured", "AbsRel",
              "to nearest, measured", "AbsRel"]  # fmt: skip
    return Table(header, rows)


def ladder_table() -> Table:
    """The worst relative error on the way from near to far: the appendix knows only its ends."""
    rows = []
    for scheme in (*SHOWN, "sqrt"):
        for mode in MODES:
            errors = [worst_error(scheme, depth, mode).abs_rel for depth in LADDER]
            texts = ["∞" if e == float("inf") else f"{100 * e:.3g}" for e in errors]
            rows.append([f"{scheme}, {'truncated' if mode == 'truncate' else 'nearest'}", *texts])
    return Table(["worst AbsRel, %", *(f"{depth:g} m" for depth in LADDER)], rows)


def pair_table() -> Table:
    """Inverse labels of 39 m and 78 m, of which the paper says that they become one."""
    scheme = scheme_range("inverse")
    depths = torch.tensor([39.0, 78.0])
    exact = encode(depths, scheme, bf16=None)
    rows = []
    for name, labels in (("exact", exact), *((mode, bf16_round(exact, mode)) for mode in MODES)):
        back = decode(labels, scheme)
        rows.append([name, *(f"{label:.6f}" for label in labels.tolist()), *(length(d) for d in back.tolist())])
    return Table(["inverse labels", "of 39 m", "of 78 m", "39 m comes back as", "78 m comes back as"], rows)


def scene_table(depth: Tensor, mask: Tensor) -> Table:
    """A whole scene under Eq. 7 (percentiles of the scene itself, no clip), and under the ranges of appendix C."""
    truth = depth[mask]
    rows = []
    for scheme in (*SHOWN, "sqrt"):
        for name, chosen in (
            ("2 % to 98 %", percentile_range(depth, mask, scheme)),
            ("0.1 to 80 m", scheme_range(scheme)),
        ):
            cells = [f"{scheme}, {name}"]
            for mode in MODES:
                label = encode(truth, chosen, bf16=mode)
                error = (decode(label, chosen) - truth).abs() / truth
                lost = float((error > 0.05).double().mean())
                finite = error[error.isfinite()].double()
                cells += [f"{100 * float(finite.mean()):.3f}", f"{100 * lost:.2f}", str(label.unique().numel())]
            rows.append(cells)
    header = ["scheme, range"]
    for mode in ("truncated", "nearest"):
        header += [f"{mode}: mean AbsRel, %", "pixels beyond 5 %, %", "labels left"]
    return Table(header, rows)


def street(height: int = 240, width: int = 400) -> tuple[Tensor, Tensor]:
    """Planar depth (height, width) in metres and its mask, ray by ray: a street from a cat's height. A ball 20 cm
    away, ground, house fronts on both sides with gaps, posts; what is beyond 80 m is sky and does not count."""
    focal = width / 2  # 90 degrees wide
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / focal
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - height * 0.55) / focal
    y, x = torch.meshgrid(y, x, indexing="ij")
    infinity = torch.full_like(x, torch.inf)
    ground = torch.where(y > 0, 0.08 / y, infinity)
    fronts = torch.where(x.abs() > 0, 5.0 / x.abs(), infinity)
    house = (fronts % 14 < 10) & (fronts * y > -6)
    best = torch.minimum(ground, torch.where(house, fronts, infinity))
    for number in range(12):
        z, side = 2.0 + 6.0 * number, -2.2 if number % 2 else 2.2
        post = ((x * z - side).abs() < 0.12) & (y * z > -2.5) & (y * z < 0.08)
        best = torch.where(post & (best > z), z, best)
    # |t ray - centre| = radius
    centre, radius = torch.tensor([-0.09, 0.03, 0.2], dtype=torch.float64), 0.05
    a = x * x + y * y + 1
    b = x * centre[0] + y * centre[1] + centre[2]
    root = b * b - a * (centre @ centre - radius**2)
    ball = torch.where(root > 0, (b - root.clamp_min(0).sqrt()) / a, infinity)
    best = torch.minimum(best, ball)
    mask = best <= FAR
    return torch.where(mask, best, 0.0).float(), mask


def figure() -> Tensor:
    """(h,w,3) in [0,1]. Rows: uniform, inverse, log. Columns: the label as it is fed to the autoencoder, black to
    white; the depth that is left of it after truncation and after rounding (logarithmic colours, near is red); the
    relative error after truncation, dark for none, red from 20 %."""
    depth, mask = street()
    rows = []
    for scheme in SHOWN:
        chosen = scheme_range(scheme)
        safe = torch.where(mask, depth, FAR)
        label = encode(safe, chosen, bf16=None)
        kept = {mode: decode(bf16_round(label, mode), chosen) for mode in MODES}
        error = ((kept["truncate"] - safe).abs() / safe).nan_to_num(posinf=1.0) / _WORST_SHOWN
        tiles = [
            apply_color_map((label + 1) / 2, "grey"),
            *(_depth_colours(kept[mode]) for mode in MODES),
            apply_color_map(error, "turbo"),
        ]
        tiles = [torch.where(mask[..., None], tile, 0.5) for tile in tiles]
        rows.append(side_by_side([tile[None] for tile in tiles], gap=4))
    return side_by_side(rows, gap=4, vertical=True)[0]


def _depth_colours(depth: Tensor) -> Tensor:
    span = metric_range(NEAR, FAR, "log")
    values = (depth.clamp(1e-3, 1e4).log() - span.low) / (span.high - span.low)
    return apply_color_map(values, "spectral")


def report() -> str:
    """All tables as Markdown."""
    depth, mask = street()
    parts = (
        ("Table 1 of the paper, recomputed and measured", paper_table()),
        ("From near to far", ladder_table()),
        ("39 m and 78 m", pair_table()),
        ("A scene with 0.15 to 80 m", scene_table(depth, mask)),
    )
    return "\n\n".join(f"### {title}\n\n{table.markdown()}" for title, table in parts)


def write(text: str) -> None:
    """Put the tables between the document's marks, and draw the figure."""
    from PIL import Image

    document = DOCUMENT.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- begin tables -->\n).*?(<!-- end tables -->)", re.DOTALL)
    if not marks.search(document):
        raise ValueError(f"{DOCUMENT}: has no marks '<!-- begin tables -->' and '<!-- end tables -->'")
    with Unfinished(DOCUMENT) as file:
        file.write(marks.sub(lambda found: f"{found.group(1)}{text}\n{found.group(2)}", document).encode("utf-8"))
    pixels = (figure().clamp(0, 1) * 255).round().byte().numpy()
    with Unfinished(PICTURE) as file:
        Image.fromarray(pixels).save(file, format="PNG", optimize=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT.name} and {Path(PICTURE).name}")
    options = parser.parse_args(argv)
    text = report()
    print(text)
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
