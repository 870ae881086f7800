"""`python -m train lora --config file.toml`: fine-tune a LoRA; run it again to go on where it was stopped.

Several processes: `accelerate launch -m train lora --config file.toml`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from train.memory_report import memory_note
from train.recipe import Objective, load_recipe

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--config", required=True, help="TOML file; train/configs/ has one for each row of the paper's tables"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the configuration and the datasets, train nothing"
    )


def limits(objective: Objective) -> str:
    """What can not be done with the LoRA of a run, "" where everything can."""
    if objective.start == "zero":
        return ""
    return (
        "[objective] start = 'noise': the LoRA predicts from noise, which nothing here does but this run's own validation; it can "
        "be neither loaded, packed nor evaluated"
    )


def run(options: argparse.Namespace) -> int:
    """The verb. Returns 1 when the numbers stopped being numbers; raises ValueError and OSError for what is
    wrong.
    """
    # torch, diffusers and accelerate, which --help does not need
    import torch

    from train.engine import Finetuning, total_steps
    from train.low_bit import check_available

    config = load_recipe(options.config)
    check_available(config.training.optimizer, config.base.dtype)
    config.watch.check()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    limited = limits(config.objective)
    if options.dry_run:
        steps = total_steps(config.training, config.data.batch, config.data.open())
        pictures = config.data.batch * config.training.accumulate
        print(f"{config.name}: {steps} steps of {pictures} pictures, into '{config.folder}'")
        if limited:
            print(limited)
        for key in ("checkpoint", "transformer", "vae", "prompt_cache", "conditioning"):
            file = getattr(config.base, key)
            if file and not os.path.isfile(file):
                print(f"[base] {key}: there is no '{file}' yet")
        print(memory_note(config, processes, None))
        return 0
    if limited and os.environ.get("RANK", "0") == "0":
        log.warning("%s", limited)
    if processes > 1 and not torch.accelerator.is_available():
        # without it, accelerate takes processes on CPUs for as many runs of their own
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if torch.cuda.is_available() and os.environ.get("LOCAL_RANK", "0") == "0":
        note = memory_note(config, processes, torch.cuda.get_device_properties(0).total_memory)
        log.info("%s", note)
    finetuning = Finetuning(config)
    try:
        if not finetuning.accelerator.is_main_process:
            finetuning.run()
            return 0
        from train.console import RunConsole

        with RunConsole(config.name, finetuning.step, finetuning.total) as console:
            path = finetuning.run(console)
        print(f"LoRA written: {path}")
    except FloatingPointError as error:
        log.error("%s", error)
        return 1
    finally:
        finetuning.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb on its own."""
    parser = argparse.ArgumentParser(prog="python -m train lora", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
