"""The loop of `train evaluate`: each process takes every n-th image, and skips what is finished already."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import torch

from fe2e_core.metrics import angular_error_deg
from train.bench.archive import Archive
from train.bench.errormaps import error_sheet, write_sheet
from train.bench.estimate import Estimate, Predictor, resized_normal
from train.bench.protocol import DEPTH, Benchmark, Member, Sample, chosen
from train.bench.score import score_depth, score_normal
from train.bench.store import Store, read_json, write_text
from train.bench.summary import image_table, summarise
from train.bench.tables import Report, detail_tables, paper_tables

log = logging.getLogger(__name__)

_AHEAD = 2


@dataclass(frozen=True)
class Job:
    """One benchmark to evaluate: its archive, a published list to take instead of all images found, at most `limit`
    images (0: all)."""

    benchmark: Benchmark
    archive: Path
    published: Path | None = None
    limit: int = 0

    def members(self, archive: Archive) -> list[Member]:
        """The images, in the order in which they count. Raises ValueError."""
        found = self.benchmark.find(archive)
        if self.published is not None:
            lines = self.published.read_text(encoding="utf-8").splitlines()
            found = chosen(found, lines, str(self.published))
        return found[: self.limit] if self.limit else found


@dataclass(frozen=True)
class Plan:
    """What is evaluated and how. alignments: keys of ALIGNMENTS. error_maps: sheets drawn for the first so many images
    of each benchmark. rank_means: also the means of so many processes' means (1: not). data: for the tables' column of
    training images. beside: folders of other finished runs whose rows go into the same tables. skipped: keys of benchmarks
    that were left out of `jobs`, and why."""

    jobs: tuple[Job, ...]
    alignments: tuple[str, ...] = ("log", "linear")
    error_maps: int = 0
    rank_means: int = 1
    data: str = "-"
    beside: tuple[Path, ...] = field(default=())
    skipped: dict[str, str] = field(default_factory=dict)


OnImage = Callable[[str, int, int], None]
"""(benchmark, images of this process done, in all)."""


class Evaluation:
    """One process of a run. rank, ranks: which of how many processes this is, the first of which is made before the
    others; scores are computed on `device`. Raises ValueError when `folder` holds results of another method or
    setting."""

    def __init__(self, plan: Plan, predictor: Predictor, folder: Path, rank: int = 0, ranks: int = 1,
                 device: torch.device | str = "cpu"):  # fmt: skip
        self.plan, self.predictor, self.folder = plan, predictor, folder
        self.rank, self.ranks, self.device = rank, ranks, torch.device(device)
        identity = {**predictor.identity, "alignments": " ".join(plan.alignments)}
        self.store = Store(folder, identity, rank, torch.get_num_threads())
        self._checked = False

    def run(self, on_image: OnImage | None = None) -> None:
        """Evaluate this process's share of every benchmark. Raises ValueError or OSError naming the image that cannot
        be read, predicted or scored; what is finished stays finished. Torch's number of CPU threads becomes the one
        with which the run began."""
        torch.set_num_threads(self.store.threads)
        for job in self.plan.jobs:
            key = job.benchmark.key
            with Archive(job.archive) as archive, self.store.writer(key) as writer:
                members = job.members(archive)
                if self.rank == 0 and len(members) != job.benchmark.images:
                    log.warning("%s: %d images, the published list has %d; the numbers are not comparable with the "
                                "paper's", key, len(members), job.benchmark.images)  # fmt: skip
                mine = list(enumerate(members))[self.rank :: self.ranks]
                done = self.store.finished(key)
                left = [(n, m) for n, m in mine if m.name not in done or self._lacks_sheet(key, n, m)]
                for count, (number, sample) in enumerate(self._samples(job, archive, left)):
                    if on_image is not None:
                        on_image(key, len(mine) - len(left) + count, len(mine))
                    sample = _sample_on(sample, self.device)
                    estimate, result = self._one(job.benchmark, sample)
                    if number < self.plan.error_maps:
                        sheet = error_sheet(job.benchmark, self.plan.alignments[0], estimate, sample)
                        write_sheet(self._sheet(key, sample.name), sheet)
                    writer.add(sample.name, result)
                if on_image is not None:
                    on_image(key, len(mine), len(mine))

    def _samples(self, job: Job, archive: Archive, left: list[tuple[int, Member]]) -> Iterator[tuple[int, Sample]]:
        """Read ahead in one thread (an archive takes no two), so that the network does not wait for the disk."""
        with ThreadPoolExecutor(1) as reader:
            waiting = [reader.submit(job.benchmark.read, archive, member) for _, member in left[:_AHEAD]]
            for position, (number, member) in enumerate(left):
                try:
                    sample = waiting.pop(0).result()
                except (ValueError, OSError) as error:
                    reader.shutdown(cancel_futures=True)
                    raise ValueError(f"{job.benchmark.key}, {member.name}: {error}") from error
                if position + _AHEAD < len(left):
                    waiting.append(reader.submit(job.benchmark.read, archive, left[position + _AHEAD][1]))
                yield number, sample

    def _one(self, benchmark: Benchmark, sample: Sample) -> tuple[Estimate, dict]:
        size = (sample.truth.shape[0], sample.truth.shape[1])
        found = self.predictor(benchmark.key, benchmark.task, sample.name, sample.image, size)
        estimate = _moved(found, self.device)
        if benchmark.task == DEPTH:
            return estimate, score_depth(benchmark, self.plan.alignments, estimate, sample)
        if not self._checked and estimate.normal is not None:
            self._checked = True
            if (message := suspect_axes(estimate, sample)) is not None:
                log.warning("%s: %s", sample.name, message)
        return estimate, score_normal(estimate, sample)

    def _sheet(self, key: str, name: str) -> Path:
        return self.folder / "errors" / key / f"{name}.jpg"

    def _lacks_sheet(self, key: str, number: int, member: Member) -> bool:
        return number < self.plan.error_maps and not self._sheet(key, member.name).is_file()

    def finish(self) -> Report:
        """Merge what all processes have done into CSV files, summary.json and tables.md; by one process only, after
        all have run. Raises ValueError when images are missing."""
        benchmarks: dict[str, dict] = {}
        summary = self.folder / "summary.json"
        if summary.is_file():
            before = read_json(summary)["benchmarks"]
            benchmarks = {key: found for key, found in before.items() if key not in self.plan.skipped}
        for job in self.plan.jobs:
            key = job.benchmark.key
            with Archive(job.archive) as archive:
                names = [member.name for member in job.members(archive)]
            done = self.store.finished(key)
            missing = [name for name in names if name not in done]
            if missing:
                raise ValueError(f"{key}: {len(missing)} images are not evaluated, the first is {missing[0]}")
            results = {name: done[name] for name in names}
            write_text(self.folder / f"{key}.csv", image_table(job.benchmark, names, results))
            benchmarks[key] = {
                "images": len(names),
                "listed": job.benchmark.images,
                "means": summarise(job.benchmark, names, results, min(self.plan.rank_means, len(names))),
            }
        report = Report(self.predictor.name, self.plan.data, benchmarks, self.plan.skipped)
        write_text(summary, json.dumps(asdict(report), indent=2) + "\n")
        reports = [report, *(read_report(folder) for folder in self.plan.beside)]
        write_text(self.folder / "tables.md", paper_tables(reports) + "\n\n" + detail_tables(reports) + "\n")
        return report


def read_report(folder: Path) -> Report:
    """The summary of a finished run. Raises FileNotFoundError, or ValueError naming the file."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no finished evaluation")
    try:
        return Report(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{path}: {error}; expected the summary of `train evaluate`") from error


def suspect_axes(estimate: Estimate, sample: Sample) -> str | None:
    """A warning where normals with other signs would fit the truth far better than those given."""
    size = (sample.truth.shape[0], sample.truth.shape[1])
    normal, truth = resized_normal(estimate.normal, size)[sample.mask], sample.truth[sample.mask]
    errors = {}
    for signs in product((1.0, -1.0), repeat=3):
        turned = normal * torch.tensor(signs, dtype=normal.dtype, device=normal.device)
        errors[signs] = float(angular_error_deg(turned, truth).mean())
    given, best = (1.0, 1.0, 1.0), min(errors, key=errors.get)
    if errors[best] >= 0.5 * errors[given]:
        return None
    turned = " and ".join(axis for axis, sign in zip("xyz", best, strict=True) if sign < 0)
    return (
        f"normals are {errors[given]:.0f} degrees off on average, and would be {errors[best]:.0f} with {turned} negated; "
        "check --normal-convention"
    )


def _moved(estimate: Estimate, device: torch.device) -> Estimate:
    return replace(
        estimate,
        depth=None if estimate.depth is None else estimate.depth.to(device),
        normal=None if estimate.normal is None else estimate.normal.to(device),
    )


def _sample_on(sample: Sample, device: torch.device) -> Sample:
    return replace(sample, truth=sample.truth.to(device), mask=sample.mask.to(device))
