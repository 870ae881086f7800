"""`python -m train curves RUN...`: the curves of several runs over each other, as PNG and CSV (paper, Fig. 4)."""

from __future__ import annotations

import argparse
import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.journal import LOSSES, VALIDATION, read_journal
from train.plot import Curve, draw_curves

_LOSSES = ("loss", "depth", "normal", "dispersive", "gradient", "rate")
_SCORES = ("abs_rel", "delta1", "angle")


def _value(row: dict[str, Any], what: str) -> float:
    """One number of a row, NaN where it is not there; "loss" is depth and normals, as the paper shows it."""
    parts = ("depth", "normal") if what == "loss" else (what,)
    try:
        return float(sum(row[part] for part in parts))
    except (KeyError, TypeError):
        return math.nan


def smoothed(y: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average (N,), unbiased at its beginning; 0 changes nothing. NaN is passed over."""
    result, total, norm = np.empty_like(y), 0.0, 0.0
    for i, value in enumerate(y):
        if math.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result[i] = total / norm if norm else math.nan
    return result


def read_curve(run: str, what: str, smooth: float, name: str = "") -> Curve:
    """A run's folder (or journal) as a curve. Raises FileNotFoundError, or ValueError when it says nothing of
    `what`."""
    path = Path(run)
    file = path / (VALIDATION if what in _SCORES else LOSSES) if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"there is no '{file}'; expected the folder of a run of `python -m train lora`")
    rows = read_journal(file)
    x = np.array([row["step"] for row in rows], dtype=np.float64)
    y = np.array([_value(row, what) for row in rows])
    if not np.isfinite(y).any():
        raise ValueError(f"'{file}' has no '{what}'; its rows have {', '.join(rows[0]) if rows else 'nothing'}")
    return Curve(name or (path.name if path.is_dir() else path.parent.name), x, y, smoothed(y, smooth))


def write_csv(curves: Sequence[Curve], path: str | os.PathLike[str]) -> None:
    """One row a step, for each run the value and its smoothed one; empty where a run has no such step."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.part")
    columns = [dict(zip(c.x.tolist(), zip(c.y, c.smooth, strict=True), strict=True)) for c in curves]
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *(head for c in curves for head in (c.name, f"{c.name} (smoothed)"))])
        for step in sorted(set().union(*columns)):
            cells = [column.get(step, (math.nan, math.nan)) for column in columns]
            writer.writerow([int(step), *("" if math.isnan(v) else float(v) for pair in cells for v in pair)])
    os.replace(temporary, target)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (out/<name>), or its .jsonl file")
    parser.add_argument("--of", default="loss", choices=(*_LOSSES, *_SCORES), help="what is drawn; loss is that of "
                        "depth and normals together (default: %(default)s)")  # fmt: skip
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="names in the legend, one a run")
    parser.add_argument("--output", default="curves.png", help="PNG; the CSV lies beside it (default: %(default)s)")
    parser.add_argument("--smooth", type=float, default=0.98, metavar="WEIGHT", help="weight of the past in the "
                        "moving average, 0 for none; scores are never smoothed (default: %(default)s)")  # fmt: skip
    parser.add_argument("--begin", type=float, default=0, metavar="STEP", help="first step shown (default: 0)")
    parser.add_argument("--end", type=float, default=math.inf, metavar="STEP", help="last step shown")
    parser.add_argument("--inset", type=float, default=0, metavar="STEP", help="show the steps up to this one in a "
                        "corner, on their own scale")  # fmt: skip
    parser.add_argument("--log", action="store_true", help="logarithmic heights")
    parser.add_argument("--dry-run", action="store_true", help="read the runs, write nothing")


def run(options: argparse.Namespace) -> int:
    """The verb. Raises ValueError and OSError for what is wrong with its arguments."""
    if options.names and len(options.names) != len(options.runs):
        raise ValueError(f"--names has {len(options.names)} names; expected one for each of {len(options.runs)} runs")
    if not 0 <= options.smooth < 1 or not options.begin < options.end:
        raise ValueError(f"--smooth {options.smooth}, --begin {options.begin:g}, --end {options.end:g}; expected a "
                         "weight of at least 0 and below 1, and begin before end")  # fmt: skip
    smooth = 0.0 if options.of in _SCORES else options.smooth
    names = options.names or [""] * len(options.runs)
    curves = [read_curve(r, options.of, smooth, name) for r, name in zip(options.runs, names, strict=True)]
    for curve in curves:
        last = int(np.flatnonzero(np.isfinite(curve.y))[-1])
        print(f"{curve.name}: {len(curve.x)} steps, {options.of} {curve.smooth[last]:.4g} at step {curve.x[last]:.0f}")
    if options.dry_run:
        return 0
    table = Path(options.output).with_suffix(".csv")
    write_csv(curves, table)
    draw_curves(curves, options.output, options.of, options.begin, options.end, options.inset, options.log)
    print(f"written: {options.output}, {table}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb on its own."""
    parser = argparse.ArgumentParser(prog="python -m train curves", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
