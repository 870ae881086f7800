"""Markdown: the paper's Tables 2 and 3 with our rows below, and every error of every benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from train.bench.paper import (
    DEPTH_COLUMNS,
    NORMAL_COLUMNS,
    TABLE_2,
    TABLE_3,
    PaperRow,
    average_rank,
)
from train.bench.protocol import DEPTH, NORMAL
from train.bench.registry import BENCHMARKS
from train.bench.score import ALIGNMENTS, DEPTH_ERRORS
from train.bench.summary import NORMAL_ERRORS

_PARTIAL = "†"
# Escaped: checkers of ComfyUI packs refuse sources with letters that the Windows code page lacks.
_DELTA, _DOWN, _UP = "\u03b4", "\u2193", "\u2191"
_SHARES = {"abs_rel", "delta1", "delta2", "delta3", *(e for e in NORMAL_ERRORS if e.startswith("within"))}
_HEADS = {
    "abs_rel": "AbsRel %",
    "sq_rel": "SqRel m",
    "rmse": "RMSE",
    "log_rmse": "log RMSE",
    "delta1": f"{_DELTA}1 %",
    "delta2": f"{_DELTA}2 %",
    "delta3": f"{_DELTA}3 %",
    "mean": "mean °",
    "median": "median °",
}


@dataclass(frozen=True)
class Report:
    """The results of one method. `benchmarks`: by key, {"images", "listed", "means": as `summarise` gives them}.
    `data`: how many training images, for the column of that name. `skipped`: why, by key of what was not scored."""

    name: str
    data: str
    benchmarks: dict[str, dict]
    skipped: dict[str, str] = field(default_factory=dict)


def paper_tables(reports: Sequence[Report]) -> str:
    """Table 2 with a row for each report and alignment, Table 3 with a row for each report and way of averaging; a
    table is left out when no report has one of its benchmarks."""
    parts = []
    for task, columns, table, first, second, title in (
        (DEPTH, DEPTH_COLUMNS, TABLE_2, f"AbsRel{_DOWN}", f"{_DELTA}1{_UP}", "Zero-shot affine-invariant depth (paper, Table 2)"),
        (NORMAL, NORMAL_COLUMNS, TABLE_3, f"MeanErr{_DOWN}", f"11.25°{_UP}", "Zero-shot surface normals (paper, Table 3)"),
    ):
        rows = [row for report in reports for row in _rows(report, task, columns, table)]
        if rows:
            parts.append(_table(title, columns, table, first, second, rows))
    return "\n\n".join(parts)


def _rows(report: Report, task: str, columns: Sequence[str], table: Sequence[PaperRow]) -> list[list[str]]:
    names = ("abs_rel", "delta1") if task == DEPTH else ("mean", "within_11.25")
    entries = [report.benchmarks.get(key) for key in columns]
    kinds = dict.fromkeys(kind for entry in entries if entry for kind in entry["means"])
    rows = []
    for kind in kinds:
        having = [entry if entry and kind in entry["means"] else None for entry in entries]
        cells = [
            tuple(_number(name, entry["means"][kind][name]) for name in names) if entry else None for entry in having
        ]
        # a rank over fewer columns or images than the paper's would be no rank among its rows
        whole = all(entry and entry["images"] == entry["listed"] for entry in having)
        rounded = tuple(None if cell is None else (round(cell[0], 1), round(cell[1], 1)) for cell in cells)
        marks = [_PARTIAL if entry and entry["images"] != entry["listed"] else "" for entry in having]
        printed = _printed(cells, average_rank(rounded, tuple(table)) if whole else None, marks)
        rows.append([f"**{report.name}**, {ALIGNMENTS.get(kind, kind)}", report.data, *printed])
    for why in dict.fromkeys(report.skipped[key] for key in columns if key in report.skipped):
        rows.append([f"**{report.name}**, not scored: {why}", report.data, *_printed([None] * len(columns), None)])
    return rows


def _printed(
    cells: Sequence[tuple[float, float] | None], rank: float | None, marks: Sequence[str] | None = None
) -> list[str]:
    marks = marks or [""] * len(cells)
    texts = (
        ("-", "-") if cell is None else (f"{cell[0]:.1f}{mark}", f"{cell[1]:.1f}{mark}")
        for cell, mark in zip(cells, marks, strict=True)
    )
    numbers = [text for pair in texts for text in pair]
    return [*numbers, "-" if rank is None else f"{rank:.1f}"]


def _table(title: str, columns: Sequence[str], table: Sequence[PaperRow], first: str, second: str,
           rows: Sequence[Sequence[str]]) -> str:  # fmt: skip
    heads = [text for key in columns for text in (f"{BENCHMARKS[key].title} {first}", second)]
    lines = [f"### {title}", "", _line(["Method", "Training data", *heads, f"Avg rank{_DOWN}"])]
    lines.append("|---|---|" + "---:|" * (len(heads) + 1))
    lines += [_line([row.method, row.data, *_printed(row.cells, row.rank)]) for row in table]
    lines += [_line(row) for row in rows]
    if any(_PARTIAL in cell for row in rows for cell in row):
        lines += ["", f"{_PARTIAL} not all images of the published list (see below): not comparable with the paper's rows."]
    return "\n".join(lines)


def detail_tables(reports: Sequence[Report]) -> str:
    """All errors, one table a benchmark, with how many of the listed images were evaluated."""
    parts = []
    for key, benchmark in BENCHMARKS.items():
        having = [report for report in reports if key in report.benchmarks]
        if not having:
            continue
        errors = DEPTH_ERRORS if benchmark.task == DEPTH else NORMAL_ERRORS
        lines = [f"### {benchmark.title}, {benchmark.task}", ""]
        lines.append(_line(["Method", "averaged", "images", *(_head(error) for error in errors)]))
        lines.append("|---|---|---|" + "---:|" * len(errors))
        for report in having:
            entry = report.benchmarks[key]
            images = f"{entry['images']} of {entry['listed']}"
            for kind, means in entry["means"].items():
                lines.append(_line([report.name, kind, images, *(_detail(e, means[e]) for e in errors)]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _head(error: str) -> str:
    return _HEADS.get(error, f"{error.removeprefix('within_')}° %")


def _number(error: str, value: float) -> float:
    return 100 * value if error in _SHARES else value


def _detail(error: str, value: float) -> str:
    return f"{_number(error, value):.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
