"""The paper's claims, each as a difference between runs of one seed, and what the seeds say of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from train.curves import smoothed
from train.thesis.network import EDITOR, GENERATOR, SCRATCH
from train.thesis.rates import all_at, best_rate
from train.thesis.results import guess_key
from train.thesis.rows import LABELS_OF

CONFIDENCE = 0.95
DECIDED = ("reproduced", "not reproduced")
VERDICTS = (*DECIDED, "undecided", "not run yet")
_FEWEST = 3
_LEAST = 0.01
"""Smallest difference, as a share of the larger measure, that is called one: a thousandth may be certain and mean
nothing."""

_SMOOTH = 0.9

Data = dict[str, Any]
Measure = Callable[[Data, str], float]
"""(results, seed) -> a number; KeyError when the run is not there."""


@dataclass(frozen=True)
class Reading:
    """One quantity by which a claim can be read: `better` is lower than `worse`, or with `higher` higher."""

    quantity: str
    better: Measure
    worse: Measure
    higher: bool = False


@dataclass(frozen=True)
class Claim:
    """What the paper says, and where. names: of the two that are compared. reading: what decides; others: shown
    beside. blind: the two rows when their labels differ: the better one has to be better than its own blind guess. bases:
    the two that were fine-tuned when these differ: what is said has to hold at the best rate of either."""

    text: str
    where: str
    names: tuple[str, str]
    reading: Reading
    others: tuple[Reading, ...] = ()
    blind: tuple[str, str] | None = None
    bases: tuple[str, str] | None = None


@dataclass(frozen=True)
class Verdict:
    """better, worse: the measures by seed. difference: their mean difference, half its confidence interval (NaN for
    fewer than two seeds). verdict: one of `VERDICTS`."""

    better: tuple[float, ...]
    worse: tuple[float, ...]
    difference: float
    half: float
    agreeing: int
    verdict: str


@dataclass(frozen=True)
class Decision:
    """verdict: one of `VERDICTS`. found: what the deciding quantity says, by rate where bases are compared ("" where not).
    why: what keeps a difference on which the seeds agree from being a verdict; empty otherwise."""

    verdict: str
    found: dict[str, Verdict]
    why: str = ""


def paired(better: list[float], worse: list[float], higher: bool = False) -> Verdict:
    """A verdict on numbers paired by seed: decided only when the 95 % interval of the mean difference (Student's t)
    leaves out 0, by three seeds or more, and when the difference is at least 1 % of the larger mean."""
    sign = -1 if higher else 1
    gaps = np.array([sign * (a - b) for a, b in zip(better, worse, strict=True)])
    count = len(gaps)
    mean = float(gaps.mean()) if count else math.nan
    half = math.nan
    if count > 1:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * gaps.std(ddof=1) / math.sqrt(count))
    verdict = "undecided" if count else "not run yet"
    larger = max(abs(float(np.mean(values))) for values in (better, worse)) if count else 0.0
    if count >= _FEWEST and abs(mean) > half and abs(mean) >= _LEAST * larger:
        verdict = "reproduced" if mean < 0 else "not reproduced"
    return Verdict(tuple(better), tuple(worse), sign * mean, half, int((gaps < 0).sum()), verdict)


def judge(reading: Reading, data: Data, seeds: list[str]) -> Verdict:
    """The verdict of the seeds that have both runs."""
    pairs = []
    for seed in seeds:
        try:
            pairs.append((reading.better(data, seed), reading.worse(data, seed)))
        except KeyError:
            continue
    return paired([a for a, _ in pairs], [b for _, b in pairs], reading.higher)


def decide(claim: Claim, data: Data, seeds: list[str]) -> Decision:
    """What the results say of a claim."""
    found = {rate: judge(claim.reading, view, seeds) for rate, view in views(claim, data).items()}
    said = {verdict.verdict for verdict in found.values()}
    if len(said) > 1:
        return Decision("undecided", found, "the rates do not agree" if said & set(DECIDED) else "")
    verdict = said.pop()
    if claim.blind is None or verdict not in DECIDED:
        return Decision(verdict, found)
    side = DECIDED.index(verdict)
    if sees(claim.blind[side], data, seeds):
        return Decision(verdict, found)
    return Decision("undecided", found, f"{claim.names[side]} is not better than its own blind guess by both AbsRel and \u03b41")


def views(claim: Claim, data: Data) -> dict[str, Data]:
    """The results by which a claim is read: all of them (""), or of one learning rate after the other, where it compares
    bases that have different best ones."""
    try:
        rates = sorted({best_rate(data, base) for base in claim.bases or ()})
    except KeyError:  # before the sweep
        rates = []
    return {f"{rate:g}": all_at(data, rate) for rate in rates} if len(rates) > 1 else {"": data}


def sees(row: str, data: Data, seeds: list[str]) -> bool:
    """Whether a row's depth is better than a guess in the same labels that ignores the picture, by both scores."""
    readings = (Reading(key, scored(row, key), guessed(row, key), higher) for key, higher in (("abs_rel", False), ("delta1", True)))
    return all(judge(reading, data, seeds).verdict == "reproduced" for reading in readings)


def scored(row: str, key: str) -> Measure:
    """A score of a row, the mean of both domains."""
    return lambda data, seed: data["runs"][f"{row}/{seed}"]["scores"]["all"][key]


def guessed(row: str, key: str) -> Measure:
    """The same score of the blind guess in the labels of a row."""
    return lambda data, seed: data["floor"][guess_key(LABELS_OF[row])]["all"][key]


def beyond_guess(row: str, key: str) -> Measure:
    """A score of a row as a multiple of the blind guess's in the same labels: 1 is no better than not looking."""
    return lambda data, seed: scored(row, key)(data, seed) / guessed(row, key)(data, seed)


def latent(row: str, kind: str = "depth") -> Measure:
    """The error of a row in latents of held-out scenes."""
    return lambda data, seed: data["runs"][f"{row}/{seed}"]["latent"][kind]


def loss_between(row: str, begin: float, end: float) -> Measure:
    """Mean training loss between two shares of the steps."""

    def measure(data: Data, seed: str) -> float:
        loss = data["runs"][f"{row}/{seed}"]["loss"]
        first = int(begin * len(loss))
        return float(np.mean(loss[first : max(first + 1, int(end * len(loss)))]))

    return measure


def roughness(row: str) -> Measure:
    """How much the loss of the second half swings about its moving average, as a share of it."""

    def measure(data: Data, seed: str) -> float:
        loss = np.array(data["runs"][f"{row}/{seed}"]["loss"])
        smooth = smoothed(loss, _SMOOTH)
        half = len(loss) // 2
        return float(np.sqrt(np.mean((loss[half:] / smooth[half:] - 1) ** 2)))

    return measure


def known(base: str, what: str, block: int | None = None) -> Measure:
    """A measure of features (`features.measure`): of one block, or the mean of all."""

    def measure(data: Data, seed: str) -> float:
        values = data["features"][f"{base}/{seed}"][what]
        return float(np.mean(values) if block is None else values[block])

    return measure


def _scores(key: str, better: str, worse: str, name: str, higher: bool = False) -> Reading:
    return Reading(name, scored(better, key), scored(worse, key), higher)


def _rows(
    text: str, where: str, better: str, worse: str, names: tuple[str, str], bases: tuple[str, str] | None = None
) -> Claim:
    """A claim on the depth of two rows with the same labels: also told in latents."""
    others = (
        _scores("delta1", better, worse, "\u03b41", higher=True),
        Reading("latent error", latent(better), latent(worse)),
    )
    return Claim(text, where, names, _scores("abs_rel", better, worse, "AbsRel"), others, bases=bases)


def _labels(text: str, better: str, worse: str, names: tuple[str, str], where: str = "3.4, Table 4") -> Claim:
    """A claim on two kinds of labels: each row against the blind guess in its own labels, since the guesses alone differ
    by more than any training does. Also told without the fit."""

    def reading(key: str, quantity: str, higher: bool = False) -> Reading:
        return Reading(f"{quantity} over the guess's", beyond_guess(better, key), beyond_guess(worse, key), higher)

    others = (reading("delta1", "\u03b41", higher=True), reading("range_abs_rel", "AbsRel by the true percentiles"))
    return Claim(text, where, names, reading("abs_rel", "AbsRel"), others, (better, worse))


_BASES = (EDITOR, GENERATOR)

CLAIMS = (
    _rows("An editor makes a better estimator than a generator, improved", "Table 4, 6 and 7", "id6", "id7", _BASES, _BASES),
    _rows("An editor makes a better estimator than a generator, adapted directly", "Table 4, 2 and 1", "id2", "id1", _BASES,
          _BASES),
    Claim("Fine-tuning an editor starts from a lower loss", "3.1, Fig. 4", _BASES,
          Reading("mean loss of the first tenth", loss_between("id6", 0, 0.1), loss_between("id7", 0, 0.1)),
          bases=_BASES),
    Claim("A generator's loss stays above an editor's to the end", "3.1, Fig. 4", _BASES,
          Reading("mean loss of the last tenth", loss_between("id6", 0.9, 1), loss_between("id7", 0.9, 1)),
          bases=_BASES),
    Claim("An editor's loss swings less", "3.1, Fig. 4", _BASES,
          Reading("swing about the moving average, second half", roughness("id6"), roughness("id7")), bases=_BASES),
    Claim("An editor's features follow the scene's geometry before any fine-tuning, at the input end", "3.1, Fig. 3", _BASES,
          Reading("depth read linearly from the answer's half (R2)", known("editor", "probe_before", 0),
                  known("generator", "probe_before", 0), higher=True),
          (Reading("from the picture's half", known("editor", "picture_before", 0), known("generator", "picture_before", 0),
                   higher=True),)),
    Claim("Fine-tuning refines an editor's features and reshapes a generator's", "3.1, Fig. 3", _BASES,
          Reading("similarity of features before and after (CKA), mean of three blocks", known("editor", "kept"),
                  known("generator", "kept"), higher=True), bases=_BASES),
    _rows("Consistent velocity is better than the instantaneous one", "3.3, Table 4, 3 and 2", "id3", "id2",
          ("consistent", "instantaneous")),
    _rows("A fixed start is better than a random one", "3.3, Table 4, 4 and 3", "id4", "id3", ("zero", "noise")),
    _labels("Logarithmic labels are better than uniform ones", "id6", "id4", ("log", "uniform")),
    _labels("Inverse labels are better than uniform ones", "id5", "id4", ("inverse", "uniform")),
    _labels("Logarithmic labels are better than inverse ones", "id6", "id5", ("log", "inverse")),
    _labels("Rounding to BF16 is what makes uniform labels bad", "exact", "id4", ("not rounded", "rounded"), "3.4, Table 1"),
    _rows("Joint estimation improves depth", "3.5, Table 4, 8 and 6", "id8", "id6", ("joint", "depth alone")),
    Claim("Joint estimation improves normals", "3.5, Fig. 8", ("joint", "normals alone"),
          _scores("angle", "id8", "normals", "mean angle in degrees"),
          (Reading("latent error", latent("id8", "normal"), latent("normals", "normal")),)),
    _rows("The dispersive loss improves depth", "A.1, Table 5", "dispersive", "id4", ("with", "without")),
    _rows("Assumed throughout: a pretrained base is better than none", "1", "id6", "scratch", ("editor", "no base"),
          (EDITOR, SCRATCH)),
)  # fmt: skip
