"""From results of single images to the numbers of a benchmark, and to its CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from fe2e_core.metrics import NORMAL_THRESHOLDS, NormalSummary, rank_mean
from train.bench.angles import Angles, unpack
from train.bench.protocol import DEPTH, Benchmark
from train.bench.score import DEPTH_ERRORS

NORMAL_ERRORS = ("mean", "median", "rmse", *(f"within_{t:g}" for t in NORMAL_THRESHOLDS))


def normal_row(summary: NormalSummary) -> dict[str, float]:
    """A NormalSummary under the names of NORMAL_ERRORS."""
    shares = {f"within_{t:g}": share for t, share in summary.within.items()}
    return {"mean": summary.mean, "median": summary.median, "rmse": summary.rmse, **shares}


def image_table(benchmark: Benchmark, names: Sequence[str], results: dict[str, dict]) -> str:
    """CSV: one line an image in the order of `names`, every number with all its digits. Shares are in [0,1]."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if benchmark.task == DEPTH:
        alignments = [key for key in results[names[0]] if key != "pixels"]
        columns = [(a, e) for a in alignments for e in (*DEPTH_ERRORS, "scale", "shift")]
        writer.writerow(["image", "pixels", *(f"{a}_{e}" for a, e in columns)])
        for name in names:
            result = results[name]
            writer.writerow([name, result["pixels"], *(repr(result[a][e]) for a, e in columns)])
    else:
        writer.writerow(["image", "pixels", *NORMAL_ERRORS])
        for name in names:
            angles = unpack(results[name])
            row = normal_row(angles.summary())
            writer.writerow([name, angles.pixels, *(repr(row[e]) for e in NORMAL_ERRORS)])
    return file.getvalue()


def summarise(
    benchmark: Benchmark, names: Sequence[str], results: dict[str, dict], ranks: int
) -> dict[str, dict[str, float]]:
    """What the tables show, by how it was averaged:

    depth    "<alignment>": means over images; "<alignment>, rank means of N" where ranks > 1
    normals  "pooled": over all pixels of all images; "per image": means over images; "rank means of N" of the latter
    """
    if benchmark.task == DEPTH:
        found = {}
        for alignment in (key for key in results[names[0]] if key != "pixels"):
            rows = [results[name][alignment] for name in names]
            found[alignment] = _means(rows, DEPTH_ERRORS, 1)
            if ranks > 1:
                found[f"{alignment}, rank means of {ranks}"] = _means(rows, DEPTH_ERRORS, ranks)
        return found
    angles = [unpack(results[name]) for name in names]
    rows = [normal_row(a.summary()) for a in angles]
    found = {"pooled": normal_row(_pooled(angles).summary()), "per image": _means(rows, NORMAL_ERRORS, 1)}
    if ranks > 1:
        found[f"rank means of {ranks}"] = _means(rows, NORMAL_ERRORS, ranks)
    return found


def _pooled(angles: Sequence[Angles]) -> Angles:
    whole = angles[0]
    for part in angles[1:]:
        whole = whole + part
    return whole


def _means(rows: Sequence[dict[str, float]], keys: Sequence[str], ranks: int) -> dict[str, float]:
    if ranks > 1:
        return {key: rank_mean([row[key] for row in rows], ranks) for key in keys}
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in keys}
