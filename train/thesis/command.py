"""`python -m train thesis`: the paper's thesis in miniature; run it again to go on where it was stopped."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path

from train.config import load_config
from train.thesis.settings import ThesisConfig
from train.thesis.sharing import CAN_SHARE, claimed

_CONFIG = Path(__file__).parents[1] / "configs" / "thesis.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--config", type=Path, default=_CONFIG, help="TOML file (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this long, keeping everything; 0: at the end")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the runs, one thread each (default: %(default)s)")
    parser.add_argument("--report-only", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--dry-run", action="store_true", help="say what is still to be done, and stop")


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """One command at a time writes the page of a study. Raises ValueError when another one has its folder."""
    with claimed(folder / "lock") as mine:
        if not mine:
            raise ValueError(f"work: another run is using '{folder}'; wait for it, or give another folder")
        yield


def _work(config: ThesisConfig, minutes: float) -> bool:
    """Do what is left of the study, with one thread; whether all was done."""
    import torch

    from train.thesis.study import Study

    torch.set_num_threads(1)
    began = time.monotonic()

    def may_go_on() -> bool:
        return not minutes or time.monotonic() - began < 60 * minutes

    return Study(config, may_go_on, lambda line: print(line, flush=True)).run()


def _help_out(config: ThesisConfig, minutes: float) -> None:
    """A further process: it ends with the one that began it."""
    from train.replicas import leave_with_parent

    threading.Thread(target=leave_with_parent, daemon=True).start()
    _work(config, minutes)


def _shared(config: ThesisConfig, minutes: float, workers: int) -> bool:
    """`_work` in this process and in further ones; whether all was done. RuntimeError when one of these failed."""
    context = get_context("spawn")
    others = [context.Process(target=_help_out, args=(config, minutes), daemon=True) for _ in range(workers - 1)]
    for process in others:
        process.start()
    ended = _work(config, minutes)
    for process in others:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process of the study ended with {process.exitcode}; what it said stands above")
    return ended


def run(options: argparse.Namespace) -> int:
    """The verb. Raises ValueError and OSError for what is wrong with its configuration."""
    config = load_config(options.config, ThesisConfig)
    from train.thesis.document import unfinished

    if options.dry_run:
        from train.thesis.rates import swept
        from train.thesis.results import PARTS, read_results

        data = read_results(config.results) if config.results.is_file() else {part: {} for part in PARTS}
        left = unfinished(config, data)
        more = "" if swept(data, config.finetuning.rates) else "\nand, when the rates are chosen, rows at the rate of another base"
        print(f"{len(left)} runs to do: {' '.join(left) or 'none'}{more}")
        return 0
    from train.thesis.document import write_document
    from train.thesis.study import Study

    if options.workers < 1 or (options.workers > 1 and not CAN_SHARE):
        raise ValueError(f"--workers is {options.workers}; expected 1 or more, and 1 on this system")
    with nullcontext() if options.report_only else only_run(config.folder):
        ended = options.report_only or _shared(config, options.minutes, options.workers)
    study = Study(config)
    for path in write_document(config, study.results.data, study.shown):
        print(f"written: {os.path.relpath(path)}")
    left = unfinished(config, study.results.data)
    print("everything is done" if ended and not left else f"{len(left)} runs to do; the same command goes on")
    return 0
