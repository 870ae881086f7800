"""Learning rates: the best one of each base, and what its runs are at another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.thesis.network import BASES
from train.thesis.rows import BASE_OF, TWINS

Data = dict[str, Any]


def sweep_key(base: str, rate: float) -> str:
    """Where the sweep keeps what a base made of a rate."""
    return f"{base}/{rate:g}"


def at(name: str, rate: float) -> str:
    """The name of a row, or of a base, at a rate that is not the best of its base."""
    return f"{name}@{rate:g}"


def best_rate(data: Data, base: str) -> float:
    """The rate that was best for a base on the validation scenes. KeyError when none has been tried."""
    tried = {float(key.split("/")[1]): error for key, error in data["sweep"].items() if key.split("/")[0] == base}
    if not tried:
        raise KeyError(base)
    return min(sorted(tried), key=lambda rate: tried[rate])


def swept(data: Data, rates: Sequence[float]) -> bool:
    """Whether all rates have been tried for every base."""
    return all(sweep_key(base, rate) in data["sweep"] for base in BASES for rate in rates)


def rates_of(data: Data, part: str, name: str) -> dict[str, str]:
    """The names under which a row or a base has results in a part, each with its rate in words, lowest first."""
    found = {key.split("/")[0] for key in data[part] if key.split("/")[0].partition("@")[0] == name}
    base = name if part == "features" else BASE_OF[name]
    rate = {run: run.partition("@")[2] or f"{best_rate(data, base):g}" for run in found}
    return dict(sorted(rate.items(), key=lambda pair: float(pair[1])))


def at_the_other_rate(data: Data, rates: Sequence[float]) -> list[tuple[str, float]]:
    """(row, rate) of the rows of `TWINS` at the rate of the row that each is compared with, where it has another. Empty
    while not all `rates` have been tried for every base."""
    if not swept(data, rates):
        return []
    found = []
    for pair in TWINS:
        for row, other in (pair, pair[::-1]):
            run = (row, best_rate(data, BASE_OF[other]))
            if run[1] != best_rate(data, BASE_OF[row]) and run not in found:
                found.append(run)
    return found


def all_at(data: Data, rate: float) -> Data:
    """The results with every base at one rate: runs and features of other rates are not in them."""
    view = dict(data)
    for part, base_of in (("runs", BASE_OF.__getitem__), ("features", str)):
        view[part] = {}
        for key, value in data[part].items():
            named, seed = key.split("/")
            name, _, other = named.partition("@")
            if (float(other) if other else best_rate(data, base_of(name))) == rate:
                view[part][f"{name}/{seed}"] = value
    return view
