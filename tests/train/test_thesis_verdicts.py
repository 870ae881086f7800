"""The thesis in miniature: what its numbers are allowed to say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from train.config import load_config
from train.thesis.claims import CLAIMS, VERDICTS, decide, paired
from train.thesis.network import BASES
from train.thesis.rates import at, at_the_other_rate, best_rate
from train.thesis.results import PARTS, guess_key, read_results
from train.thesis.settings import ThesisConfig

ROOT = Path(__file__).resolve().parents[2]


def test_verdicts_agree_with_the_paired_t_test():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a = rng.normal(0, 1, 4)
        b = a + rng.normal(0.8, 0.6, 4)
        decided = stats.ttest_rel(a, b).pvalue < 0.05
        verdict = paired(list(a), list(b)).verdict
        assert (verdict != "undecided") == decided
        assert not decided or (verdict == "reproduced") == (a.mean() < b.mean())
        assert not decided or paired(list(a), list(b), higher=True).verdict != verdict
    assert paired([1.0, 1.1, 1.2], [1.005, 1.105, 1.205]).verdict == "undecided", "certain, but half a percent"
    assert paired([1.0, 1.0], [2.0, 2.1]).verdict == "undecided", "two seeds decide nothing"
    assert paired([], []).verdict == "not run yet"
    assert paired([1.0, 1.1, 1.0], [2.0, 2.0, 2.1]).agreeing == 3


def scores_of_labels(log: tuple[float, float], uniform: tuple[float, float]) -> dict[str, dict[str, object]]:
    """Results of the rows with logarithmic and uniform labels: AbsRel and delta1 as multiples of their own guesses'."""
    guesses = {"log": (0.9, 0.48), "uniform": (2.0, 0.44)}
    keys = ("abs_rel", "delta1", "range_abs_rel")
    runs = {}
    for row, scheme, (error, share) in (("id6", "log", log), ("id4", "uniform", uniform)):
        for seed, sway in enumerate((0.999, 1.0, 1.001)):
            numbers = (guesses[scheme][0] * error * sway, guesses[scheme][1] * share * sway, error * sway)
            runs[f"{row}/{seed}"] = {"scores": {"all": dict(zip(keys, numbers, strict=True))}}
    floor = {guess_key(scheme): {"all": dict(zip(keys, (*both, 1.0), strict=True))} for scheme, both in guesses.items()}
    return {"floor": floor, "runs": runs}


@pytest.mark.parametrize(
    ("log", "uniform", "verdict"),
    [
        ((1.0, 1.0), (1.0, 1.0), "undecided"),  # rows that are their guesses: 0.9 against 2.0, and nothing learnt
        ((0.97, 1.0), (1.0, 1.0), "undecided"),  # better by one score alone
        ((0.9, 1.1), (1.0, 1.0), "reproduced"),
        ((1.0, 1.0), (0.9, 1.1), "not reproduced"),  # although 0.9 is less than 1.8
        ((1.1, 1.0), (0.95, 0.99), "undecided"),
        ((0.9, 1.1), (0.9, 1.1), "undecided"),
    ],
)
def test_labels_are_compared_by_what_a_row_sees_beyond_its_own_guess(log, uniform, verdict):
    claim = next(claim for claim in CLAIMS if claim.names == ("log", "uniform"))
    decision = decide(claim, scores_of_labels(log, uniform), ["0", "1", "2"])
    assert decision.verdict == verdict
    assert ("blind guess" in decision.why) == (verdict == "undecided" and decision.found[""].verdict != "undecided")


def results_at_rates(kept: dict[tuple[str, float], float]) -> dict[str, dict[str, object]]:
    """Results of an editor that is best at 3e-4 and a generator that is best at 1e-3: how alike features stay, by rate."""
    data: dict[str, dict[str, object]] = {part: {} for part in PARTS}
    data["sweep"] = {"editor/0.0003": 1.0, "editor/0.001": 1.1, "generator/0.0003": 1.1, "generator/0.001": 1.0,
                     "none/0.0003": 1.1, "none/0.001": 1.0}  # fmt: skip
    for (base, rate), value in kept.items():
        name = base if rate == best_rate(data, base) else at(base, rate)
        data["features"] |= {f"{name}/{seed}": {"kept": [value + 0.001 * seed] * 3} for seed in range(3)}
    return data


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        ((0.6, 0.6), (0.3, 0.3), "undecided"),  # the rate alone: 0.6 against 0.3, each base at its own
        ((0.6, 0.5), (0.4, 0.3), "reproduced"),
        ((0.5, 0.6), (0.2, 0.3), "not reproduced"),  # although each at its own, 0.5 is more than 0.3
        ((0.6, 0.5), (0.3, 0.4), "undecided"),
        ((0.6, 0.5), None, "undecided"),  # runs of one rate alone
        (None, None, "not run yet"),
    ],
)
def test_bases_are_compared_at_equal_rates_and_both_have_to_agree(low, high, verdict):
    found = {(base, rate): values[i] for rate, values in ((3e-4, low), (1e-3, high)) if values
             for i, base in enumerate(("editor", "generator"))}  # fmt: skip
    claim = next(claim for claim in CLAIMS if "refines" in claim.text)
    decision = decide(claim, results_at_rates(found), ["0", "1", "2"])
    assert decision.verdict == verdict
    assert list(decision.found) == ["0.0003", "0.001"]
    assert all(found.better == () or found.agreeing in (0, 3) for found in decision.found.values())


def test_runs_at_the_rate_of_the_other_base_are_planned_once_the_rates_are_known():
    data = results_at_rates({})
    wanted = [("id6", 1e-3), ("id7", 3e-4), ("scratch", 3e-4), ("id2", 1e-3), ("id1", 3e-4)]
    assert at_the_other_rate(data, (3e-4, 1e-3)) == wanted
    assert at_the_other_rate(data, (3e-4, 1e-3, 3e-3)) == [], "one rate has not been tried"
    assert at_the_other_rate({"sweep": {f"{base}/0.001": 1.0 for base in ("editor", "generator", "none")}}, (1e-3,)) == []
    for claim in CLAIMS:  # whatever compares two bases after fine-tuning is read at both rates
        bases = {claim.names[0], claim.names[1].replace("no base", "none")}
        assert (claim.bases is not None) == (bases <= set(BASES) and "before any" not in claim.text), claim.text
        assert claim.bases is None or set(claim.bases) == bases


def test_the_page_and_the_readme_say_what_the_results_say():
    config = load_config(ROOT / "train" / "configs" / "thesis.toml", ThesisConfig)
    data = read_results(ROOT / "docs" / "thesis" / "results.json")
    verdicts = [decide(claim, data, [str(seed) for seed in config.seeds]).verdict for claim in CLAIMS]
    page = (ROOT / "docs" / "thesis.md").read_text(encoding="utf-8")
    assert re.findall(r"\| \*\*([a-z ]+)\*\* \|", page) == verdicts
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in verdicts)
    assert f"{counted}." in (ROOT / "README.md").read_text(encoding="utf-8")
