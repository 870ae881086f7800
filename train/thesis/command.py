"""`python -m train thesis`: the paper's thesis in miniature; run it again to go on where it was stopped."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from train.config import load_config
from train.thesis.settings import ThesisConfig

_CONFIG = Path(__file__).parents[1] / "configs" / "thesis.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--config", type=Path, default=_CONFIG, help="TOML file (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this long, keeping everything; 0: at the end")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: %(default)s)")
    parser.add_argument("--report-only", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--dry-run", action="store_true", help="say what is still to be done, and stop")


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Two runs of one study would train the same weights. The system forgets the lock of a run that was killed.

    Raises ValueError when another run has it. Where there is no such lock (Windows), nothing is checked."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"work: another run is using '{folder}'; wait for it, or give another folder") from None
        yield


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
    import torch

    from train.thesis.document import write_document
    from train.thesis.study import Study

    torch.set_num_threads(max(1, options.threads))
    began = time.monotonic()

    def may_go_on() -> bool:
        return not options.minutes or time.monotonic() - began < 60 * options.minutes

    with nullcontext() if options.report_only else only_run(config.folder):
        study = Study(config, may_go_on, lambda line: print(line, flush=True))
        ended = options.report_only or study.run()
    for path in write_document(config, study.results.data, study.shown):
        print(f"written: {os.path.relpath(path)}")
    left = unfinished(config, study.results.data)
    print("everything is done" if ended and not left else f"{len(left)} runs to do; the same command goes on")
    return 0
