"""Measuring on many held-out scenes: several processes, figures kept as they come, medians and percentiles."""

from __future__ import annotations

import argparse
import inspect
import json
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

Measurement = Callable[[int, int, int], dict[str, float]]
"""(number of the scene, height, width) -> figures by name; a figure that a scene cannot give is left out."""


def add_scene_arguments(
    parser: argparse.ArgumentParser, scenes: int, default_sizes: str = "640x480,1024x768"
) -> None:
    """--scenes, --sizes, --workers, --keep, --write."""
    parser.add_argument("--scenes", type=int, default=scenes)
    parser.add_argument("--sizes", default=default_sizes, help="width x height, separated by commas")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--keep", type=Path, help="folder of figures that are there already; a stopped run goes on")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/geometry.md")


def sizes(text: str) -> list[tuple[int, int]]:
    """(height, width) of each WIDTHxHEIGHT. Raises ValueError for anything else."""
    out = []
    for part in text.split(","):
        try:
            width, height = (int(n) for n in part.split("x"))
        except ValueError:
            raise ValueError(f"--sizes: found {part!r}, expected WIDTHxHEIGHT, such as 640x480") from None
        out.append((height, width))
    return out


def over_scenes(
    measure: Measurement,
    scenes: int,
    height: int,
    width: int,
    workers: int,
    keep: Path | None = None,
) -> dict[str, list[float]]:
    """All figures of scenes 0 to scenes - 1, by name, in order.

    keep: a folder; what it holds of this measurement at this size is taken from it, the rest is added line by
    line.
    """
    kind = "" if measure.__name__ == "measure" else f"_{measure.__name__}"
    stem = Path(inspect.getfile(measure)).stem + kind
    path = None if keep is None else keep / f"{stem}_{width}x{height}.jsonl"
    known: dict[int, dict[str, float]] = {}
    if path is not None and path.is_file():
        known = {line["scene"]: line["figures"] for line in map(json.loads, path.read_text().splitlines())}
    tasks = [(number, height, width) for number in range(scenes) if number not in known]
    for task, figures in zip(tasks, _results(measure, tasks, workers), strict=True):
        known[task[0]] = figures
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps({"scene": task[0], "figures": figures}) + "\n")
    found: dict[str, list[float]] = {}
    for number in range(scenes):
        for name, value in known[number].items():
            found.setdefault(name, []).append(value)
    return found


def _results(measure: Measurement, tasks: list[tuple[int, int, int]], workers: int) -> Iterable[dict]:
    if not tasks:
        return
    if workers <= 1:
        yield from (measure(*task) for task in tasks)
        return
    # fork would copy torch's thread pool in a state it cannot work in
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        yield from pool.map(measure, *zip(*tasks, strict=True))


def _one_thread() -> None:
    torch.set_num_threads(1)


def quantiles(values: list[float], *parts: float) -> list[float]:
    """Quantiles of finite values; nan if there are none."""
    finite = torch.tensor([v for v in values if math.isfinite(v)], dtype=torch.float64)
    return [float(finite.quantile(p)) if len(finite) else math.nan for p in parts]
