"""The tables of docs/thesis.md, as Markdown, from the results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.thesis.claims import CLAIMS, Verdict, decide, judge, views
from train.thesis.edits import EDITS
from train.thesis.features import BLOCKS
from train.thesis.network import EDITOR, GENERATOR
from train.thesis.pictures import LABELS
from train.thesis.rates import rates_of
from train.thesis.results import guess_key
from train.thesis.rows import Row

Data = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds; a lone value without one, a dash for none."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def seeds_of(data: Data, row: str) -> list[str]:
    """The seeds of which a row is there."""
    return sorted((key.split("/")[1] for key in data["runs"] if key.split("/")[0] == row), key=int)


def _cells(data: Data, row: str, picks: Sequence[Callable[[dict[str, Any]], float]], digits: Sequence[int]) -> list[str]:
    runs = [data["runs"][f"{row}/{seed}"] for seed in seeds_of(data, row)]
    return [spread([pick(run) for run in runs], n) for pick, n in zip(picks, digits, strict=True)]


def _pick(domain: str, key: str) -> Callable[[dict[str, Any]], float]:
    return lambda run: run["scores"][domain][key]


def main_table(data: Data, rows: Sequence[Row]) -> str:
    """Table 4 of the paper: depth by row and domain, with the blind guesses and the autoencoder alone."""
    keys = [(d, k) for d in ("outdoor", "indoor") for k in ("abs_rel", "delta1")]
    lines = []
    for row in rows:
        if row.normals:
            continue
        cells = _cells(data, row.name, [_pick(d, k) for d, k in keys], (3, 3, 3, 3))
        latent = _cells(data, row.name, [lambda run: run["latent"]["depth"]], (3,))
        paper = "-" if row.paper is None else f"{row.paper.kitti[0]:.1f} / {row.paper.eth3d[0]:.1f}"
        lines.append([row.title, row.base, row.labels, *cells, *latent, str(len(seeds_of(data, row.name))), paper])
    for title, key_of in (("guess without looking", guess_key), ("autoencoder alone", str)):
        for scheme in LABELS:
            scores = data["floor"].get(key_of(scheme))
            if scores:
                lines.append([title, "-", scheme, *(f"{scores[d][k]:.3f}" for d, k in keys), "-", "-", "-"])
    header = ("row", "base", "labels", "outdoor AbsRel", "\u03b41", "indoor AbsRel", "\u03b41", "latent error", "seeds",
              "paper, KITTI / ETH3D AbsRel, %")  # fmt: skip
    return table(header, lines)


def label_table(data: Data, rows: Sequence[Row]) -> str:
    """The rows that differ in labels alone, each with the blind guess in its labels: fitted, and read back through the
    true percentiles, near and far."""
    lines = []
    keys = [("all", "abs_rel"), ("all", "delta1"), ("all", "range_abs_rel"), ("all", "range_delta1"), ("outdoor", "near"),
            ("outdoor", "far")]  # fmt: skip
    for name in ("id4", "exact", "sqrt", "id5", "id6"):
        row = next(row for row in rows if row.name == name)
        lines.append([row.labels, *_cells(data, name, [_pick(d, k) for d, k in keys], (3,) * len(keys))])
        for title, key in (("guess without looking", guess_key(row.labels)), ("autoencoder alone", row.labels)):
            if key in data["floor"]:
                lines.append([f"{title}, {row.labels}", *(f"{data['floor'][key][d][k]:.3f}" for d, k in keys)])
    header = ("labels", "AbsRel, fitted", "\u03b41, fitted", "AbsRel, true percentiles", "\u03b41, true percentiles", "outdoor, nearer than 1 m",
              "outdoor, beyond 20 m")  # fmt: skip
    return table(header, lines)


def normal_table(data: Data) -> str:
    """Normals: joint, alone, the autoencoder and the guess."""
    keys = [(d, k) for d in ("outdoor", "indoor") for k in ("angle", "within")]
    lines = [[title, *_cells(data, name, [_pick(d, k) for d, k in keys], (1, 3, 1, 3))]
             for name, title in (("id8", "8: joint"), ("normals", "6, normals alone"))]  # fmt: skip
    for key, title in ((guess_key("normals"), "guess without looking"), ("normals", "autoencoder alone")):
        if key in data["floor"]:
            lines.append([title, *(f"{data['floor'][key][d][k]:.{1 if k == 'angle' else 3}f}" for d, k in keys)])
    return table(("row", "outdoor, degrees", "within 11.25", "indoor, degrees", "within 11.25"), lines)


def feature_table(data: Data) -> str:
    """What is read from three blocks of both bases, before and after."""
    lines = []
    titles = {
        "probe_before": "depth in the answer's half, before", "probe_after": "depth in the answer's half, after",
        "picture_before": "depth in the picture's half, before", "picture_after": "depth in the picture's half, after",
        "kept": "similarity before and after",
    }  # fmt: skip
    for what, title in titles.items():
        for base in (EDITOR, GENERATOR):
            rates = rates_of(data, "features", base) if "after" in title else {base: ""}
            for name, rate in rates.items():
                found = [value[what] for key, value in data["features"].items() if key.split("/")[0] == name]
                whose = f"{base}, at {rate}" if rate else base
                lines.append([f"{title}: {whose}", *(spread([f[b] for f in found]) for b in range(len(BLOCKS)))])
    return table(("", *(f"{name} block" for name in BLOCKS)), lines)


def edit_table(data: Data, seeds: Sequence[str]) -> str:
    """How well the editors edit: latent error of the edit, and of leaving the source as it is."""
    found = [data["bases"][f"{EDITOR}/{s}"]["edits"] for s in seeds if f"{EDITOR}/{s}" in data["bases"]]
    lines = [[edit, spread([f[edit][0] for f in found]), spread([f[edit][1] for f in found[:1]])] for edit in EDITS]
    return table(("edit", "the editors' error", "error of the source itself"), lines) if found else ""


def rate_table(data: Data) -> str:
    """The sweep: latent error by base and rate, the chosen ones bold."""
    bases: dict[str, dict[str, float]] = {}
    for key, value in data["sweep"].items():
        base, rate = key.split("/")
        bases.setdefault(base, {})[rate] = value
    rates = sorted({rate for values in bases.values() for rate in values}, key=float)
    lines = []
    for base, values in bases.items():
        best = min(values, key=lambda r: values[r])
        cells = [f"{values[r]:.4f}" if r in values else "-" for r in rates]
        lines.append([base, *(f"**{c}**" if r == best else c for c, r in zip(cells, rates, strict=True))])
    return table(("base", *rates), lines) if lines else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _told(verdict: Verdict, names: Sequence[str]) -> str:
    if not verdict.better:
        return "-"
    text = f"{names[0]} {_number(float(np.mean(verdict.better)))}, {names[1]} {_number(float(np.mean(verdict.worse)))}"
    if not math.isnan(verdict.half):
        low, high = verdict.difference - verdict.half, verdict.difference + verdict.half
        text += f"; difference {_number(verdict.difference)} (95 %: {_number(low)} to {_number(high)})"
    return f"{text}; as claimed in {verdict.agreeing} of {len(verdict.better)} seeds"


def claim_table(data: Data, seeds: list[str]) -> str:
    """One line a claim: what the paper says, the verdict, and why."""
    lines = ["| claim of the paper | where | here | evidence |", "| --- | --- | --- | --- |"]
    for claim in CLAIMS:
        decision = decide(claim, data, seeds)
        evidence = []
        for rate, verdict in decision.found.items():
            if rate:
                at_rate = f", both at {rate}: {_told(verdict, claim.names)} ({verdict.verdict})"
                evidence.append((claim.reading.quantity if not evidence else "the same") + at_rate)
            else:
                evidence.append(f"{claim.reading.quantity}: {_told(verdict, claim.names)}")
        if decision.why:
            evidence[-1] += f", but {decision.why}"
        for reading in claim.others if "" in decision.found and decision.found[""].better else ():
            other = judge(reading, data, seeds)
            evidence.append(f"{reading.quantity}: {_told(other, claim.names)} ({other.verdict})")
        lines.append(f"| {claim.text} | {claim.where} | **{decision.verdict}** | {'. '.join(evidence)} |")
    return "\n".join(lines)


def _compared(verdict: Verdict, judged: bool) -> str:
    """Both means, their difference with half its interval, and the verdict where it counts."""
    if not verdict.better:
        return "-"
    text = " / ".join(_number(float(np.mean(values))) for values in (verdict.better, verdict.worse))
    if not math.isnan(verdict.half):
        text += f": {_number(verdict.difference)} ± {_number(verdict.half)}"
    return f"{text}, {verdict.verdict}" if judged else text


def equal_rates_table(data: Data, seeds: list[str]) -> str:
    """Every quantity of the claims that compare bases: both at one rate, at another, and each at its own best; empty when
    all have the same."""
    found = [(claim, views(claim, data)) for claim in CLAIMS if claim.bases]
    rates = sorted({rate for _, by_rate in found for rate in by_rate if rate}, key=float)
    lines = []
    for claim, by_rate in found if rates else ():
        for reading in (claim.reading, *claim.others):
            cells = [_compared(judge(reading, by_rate[rate], seeds), True) if rate in by_rate else "-" for rate in rates]
            cells.append(_compared(judge(reading, data, seeds), False))
            lines.append([claim.text, reading.quantity, " / ".join(claim.names), *cells])
    header = ("claim", "quantity", "of", *(f"both at {rate}" for rate in rates), "each at its own")
    return table(header, lines) if lines else ""
