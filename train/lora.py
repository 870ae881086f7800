"""`python -m train lora --config file.toml`: fine-tune a LoRA; run it again to go on where it was stopped.

Several processes: `accelerate launch -m train lora --config file.toml`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from train.recipe import load_recipe

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--config", required=True, help="TOML file; train/configs/ has one for each row of the paper's tables"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the configuration and the datasets, train nothing"
    )


def run(options: argparse.Namespace) -> int:
    """The verb. Returns 1 when the numbers stopped being numbers; raises ValueError and OSError for what is
    wrong.
    """
    # engine brings diffusers and accelerate, which --help does not need
    from train.engine import Finetuning, StepReport, total_steps

    config = load_recipe(options.config)
    if options.dry_run:
        steps = total_steps(config.training, config.data.batch, config.data.open())
        pictures = config.data.batch * config.training.accumulate
        print(f"{config.name}: {steps} steps of {pictures} pictures, into '{config.folder}'")
        return 0
    finetuning = Finetuning(config)

    def show(report: StepReport) -> None:
        if report.step % 10 == 0 or report.step == finetuning.total:
            print(
                f"step {report.step}/{finetuning.total}: depth {report.depth:.4f}, normals "
                f"{report.normal:.4f}, "
                f"dispersive {report.dispersive:.4f}, gradient {report.gradient:.3g}",
                flush=True,
            )

    try:
        print(f"LoRA written: {finetuning.run(show)}")
    except FloatingPointError as error:
        log.error("%s", error)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb on its own."""
    parser = argparse.ArgumentParser(prog="python -m train lora", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
