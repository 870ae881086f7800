"""`python -m train evaluate`: the paper's nine benchmarks for a checkpoint, or for any program's predictions.

Run it again to go on where it was stopped. Several processes or machines: `accelerate launch -m train evaluate ...`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint
from fe2e_core.estimation import MODES
from fe2e_core.geometry import NORMAL_CONVENTIONS
from fe2e_core.tensorfile import TensorFile
from train.bench.estimate import Predictor
from train.bench.protocol import NORMAL, Benchmark
from train.bench.registry import BENCHMARKS, select
from train.bench.run import Evaluation, Job, Plan
from train.bench.score import ALIGNMENTS, SCHEME_ALIGNMENTS

log = logging.getLogger(__name__)

_PATIENCE = timedelta(days=7)
_DEPTHS = ("", "*/", "*/*/")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with the archives, as downloaded")
    parser.add_argument(
        "--benchmarks", nargs="+", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; or depth, normal (default: those "
        "whose archive is there)"
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="an FE2E checkpoint, run through diffusers")
    what.add_argument("--predictions", type=Path, help="folder of another program's predictions, see docs/evaluation.md")
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV files, tables and what is finished")
    parser.add_argument("--alignments", nargs="+", choices=list(ALIGNMENTS),
                        help="depth alignments, side by side (default: by the checkpoint's labels, log linear for the paper's)")  # fmt: skip
    parser.add_argument("--name", help="the method's name in the tables (default: the file's or folder's)")
    parser.add_argument("--training-data", default="-", help="for the tables' column of that name")
    parser.add_argument("--size", choices=MODES, default="reference",
                        help="what the network works at (default: reference, as in the released evaluation)")  # fmt: skip
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp8"), default="auto",
                        help="of the transformer; auto: bf16 on a GPU, fp32 on a CPU (default: auto)")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--normal-convention", choices=list(NORMAL_CONVENTIONS), default="OpenCV",
                        help="axes of stored normals (default: OpenCV)")  # fmt: skip
    parser.add_argument("--label", action="store_true", help="stored depth is FE2E's label in [-1, 1]")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many images of each benchmark")
    parser.add_argument("--error-maps", type=int, default=0, metavar="N", help="draw the errors of the first N images")
    parser.add_argument("--rank-means", type=int, default=1, metavar="N",
                        help="also average as the released evaluation does on N GPUs")  # fmt: skip
    parser.add_argument("--list", nargs="*", default=[], metavar="NAME=FILE", help="published lists of images; by "
                        "default all images in an archive count, sorted")  # fmt: skip
    parser.add_argument("--archive", nargs="*", default=[], metavar="NAME=PATH", help="archives with other names")
    parser.add_argument("--beside", nargs="*", type=Path, default=[], metavar="OUT",
                        help="folders of finished runs whose rows go into the same tables")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="find the archives and what is to be scored, score nothing")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, alone or as one of the processes that accelerate started; the first one prints the tables."""
    if arguments.dry_run:
        return announce(arguments)
    from accelerate import PartialState

    started_together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # the fastest process waits at the end for the slowest, longer than the default patience
    state = PartialState(cpu=arguments.cpu, **({"timeout": _PATIENCE} if started_together else {}))
    device = state.device
    info = checkpoint_info(arguments)
    if info is not None and info.notice and state.is_main_process:
        log.info("%s: %s", info.name, info.notice)
    jobs, skipped = trained_for(find_jobs(arguments), info)
    if skipped and state.is_main_process:
        log.warning("left out: %s", "; ".join(f"{key}, {why}" for key, why in skipped.items()))
    alignments = chosen_alignments(arguments.alignments, info)
    if info is not None and state.is_main_process:
        _tell_alignments(info, alignments)
    plan = Plan(
        jobs=jobs,
        alignments=alignments,
        error_maps=arguments.error_maps,
        rank_means=arguments.rank_means,
        data=arguments.training_data,
        beside=tuple(arguments.beside),
        skipped=skipped,
    )
    predictor = open_predictor(arguments, device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    scoring = device if device.type == "cuda" else torch.device("cpu")  # float64 is missing elsewhere
    with state.main_process_first():
        evaluation = Evaluation(plan, predictor, arguments.out, state.process_index, state.num_processes, scoring)
    evaluation.run(ImageProgress() if state.is_main_process else None)
    state.wait_for_everyone()
    if state.is_main_process:
        evaluation.finish()
        print((arguments.out / "tables.md").read_text(encoding="utf-8"))
    if started_together:
        state.destroy_process_group()
    return 0


def announce(arguments: argparse.Namespace) -> int:
    """Say what would be evaluated. Raises ValueError or OSError for what is not there."""
    if arguments.predictions is not None:
        open_predictor(arguments, torch.device("cpu"))
    info = checkpoint_info(arguments)
    jobs, skipped = trained_for(find_jobs(arguments), info)
    if info is not None and info.notice:
        print(f"{info.name}: {info.notice}")
    for job in jobs:
        print(f"{job.benchmark.key}: {job.archive}{f', the first {job.limit} images' if job.limit else ''}")
    for key, why in skipped.items():
        print(f"{key}: left out, {why}")
    what = arguments.checkpoint or arguments.predictions
    alignments = ", ".join(chosen_alignments(arguments.alignments, info))
    print(f"'{what}' on {len(jobs)} benchmark(s), depth aligned by {alignments}, into '{arguments.out}'; nothing was written")
    return 0


def open_predictor(arguments: argparse.Namespace, device: torch.device) -> Predictor:
    """What --checkpoint or --predictions names. Raises ValueError or OSError."""
    if arguments.predictions is not None:
        from train.bench.folder import FolderPredictor

        name = arguments.name or arguments.predictions.resolve().name
        return FolderPredictor(arguments.predictions, name, arguments.normal_convention, arguments.label)
    from train.bench.checkpoint import CheckpointPredictor

    name = arguments.name or arguments.checkpoint.stem
    dtype = arguments.dtype
    if dtype == "auto":
        dtype = "bf16" if device.type == "cuda" else "fp32"
    return CheckpointPredictor(arguments.checkpoint, name, arguments.size, dtype, device)


def checkpoint_info(arguments: argparse.Namespace) -> CheckpointInfo | None:
    """What --checkpoint says of itself, None for --predictions. Raises ValueError or OSError."""
    if arguments.checkpoint is None:
        return None
    with TensorFile(arguments.checkpoint, "checkpoint") as file:
        return read_checkpoint(file).info


def chosen_alignments(wanted: list[str] | None, info: CheckpointInfo | None) -> tuple[str, ...]:
    """--alignments, or what the labels of the checkpoint ask for."""
    return tuple(dict.fromkeys(wanted or SCHEME_ALIGNMENTS["log" if info is None else info.quantization]))


def _tell_alignments(info: CheckpointInfo, alignments: tuple[str, ...]) -> None:
    log.info("%s: labels of the scheme '%s', aligned by %s", info.name, info.quantization, ", ".join(alignments))
    own = SCHEME_ALIGNMENTS[info.quantization][0]
    if own not in alignments:
        log.warning("%s: its labels ask for --alignments %s; aligned otherwise it looks worse than it is", info.name, own)


def trained_for(jobs: tuple[Job, ...], info: CheckpointInfo | None) -> tuple[tuple[Job, ...], dict[str, str]]:
    """The jobs that a checkpoint was trained for, and why not the others, by key. Raises ValueError when none is left."""
    if info is None or info.joint:
        return jobs, {}
    left = tuple(job for job in jobs if job.benchmark.task != NORMAL)
    skipped = {job.benchmark.key: "trained on depth alone" for job in jobs if job not in left}
    if not left:
        raise ValueError(f"{info.name}: was trained on depth alone, and only benchmarks of normals are to be scored "
                         f"({', '.join(skipped)})")  # fmt: skip
    return left, skipped


def find_jobs(arguments: argparse.Namespace) -> tuple[Job, ...]:
    """The benchmarks asked for, or those whose archive is there. Raises ValueError for an unknown name, FileNotFoundError
    for an archive that was asked for and is missing."""
    archives, lists = _pairs(arguments.archive, "--archive"), _pairs(arguments.list, "--list")
    jobs = []
    for benchmark in select(arguments.benchmarks or ["all"]):
        archive = archives.get(benchmark.key) or find_archive(arguments.data, benchmark)
        if archive is None and not arguments.benchmarks:
            log.info("%s: no %s in %s, left out", benchmark.key, benchmark.archive, arguments.data)
            continue
        if archive is None:
            raise FileNotFoundError(
                f"{benchmark.key}: there is no {benchmark.archive} in {arguments.data}; docs/evaluation.md says where "
                f"it comes from, --archive {benchmark.key}=PATH takes one of another name"
            )
        jobs.append(Job(benchmark, archive, lists.get(benchmark.key), arguments.limit))
    if not jobs:
        names = ", ".join(dict.fromkeys(benchmark.archive for benchmark in BENCHMARKS.values()))
        raise FileNotFoundError(f"{arguments.data}: holds none of the archives {names}")
    return tuple(jobs)


def find_archive(data: Path, benchmark: Benchmark) -> Path | None:
    """The archive, or a folder of its name without the ending, in `data` or at most two folders below."""
    for name in (benchmark.archive, Path(benchmark.archive).stem):
        for above in _DEPTHS:
            for path in sorted(data.glob(above + name)):
                return path
    return None


def _pairs(words: list[str], option: str) -> dict[str, Path]:
    pairs = {}
    for word in words:
        key, equals, path = word.partition("=")
        if not equals or key not in BENCHMARKS:
            raise ValueError(f"{option} {word}: expected NAME=PATH with one of {', '.join(BENCHMARKS)}")
        pairs[key] = Path(path)
    return pairs


class ImageProgress:
    """A bar on a terminal, a line every half minute in a log. Callable as OnImage."""

    def __init__(self) -> None:
        self._bar = None
        self._key = ""

    def __call__(self, benchmark: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if benchmark != self._key:
            interval = 0.2 if sys.stderr.isatty() else 30.0
            self._bar = tqdm(total=total, initial=done, desc=benchmark, unit="image", mininterval=interval)
            self._key = benchmark
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
