"""`python -m train memory`: what a fine-tuning run will need of a GPU, before anything is loaded.

    python -m train memory --config train/configs/fe2e_24gb.toml
    python -m train memory --table [--write docs/training.md]

All of it is arithmetic (train/memory.py, train/cost.py); nothing is run on a GPU and no weights are read, only the
headers of the base's files where they are there already.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.folding import has_guidance, is_folded
from fe2e_core.promptcache import read_prompt_cache
from fe2e_core.quantized import Dequantized
from fe2e_core.recognition import transformer_size
from fe2e_core.tensorfile import TensorFile
from train.dispersive import DispersiveConfig
from train.recipe import BaseFiles, FinetuneConfig, LoraShape, load_recipe

if TYPE_CHECKING:
    from train.memory import Estimate, StepPlan

#: Sizes (height, width) and precisions of the table.
SIZES = ((384, 512), (576, 768), (768, 1024))
PRECISIONS = ("fp32", "bf16", "fp8", "nf4")
#: Ways to store the base, the most exact first; a folded one computes the same.
BEST_FIRST = (("bf16", False), ("bf16", True), ("fp8", True), ("nf4", True))
#: The share of a card's memory that a run may be estimated to need.
USABLE = 0.95
GIB = 2**30
#: Tokens of the text where there is no file to count them in: of Step1X-Edit's prompt cache, of a FLUX.1 text encoder.
_CACHE_TOKENS, _ENCODER_TOKENS = 640, 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="TOML file of a run: its peak, part by part")
    what.add_argument("--table", action="store_true", help="peak by size, precision and folding; days by card")
    parser.add_argument("--processes", type=int, default=1, help="of the run: each has its share of the batch (default 1)")
    parser.add_argument("--write", type=Path, help="with --table: put the tables between their marks in this file")
    parser.add_argument("--dry-run", action="store_true", help="say what would be counted, count nothing")


def run(options: argparse.Namespace) -> int:
    """Returns 0. Raises ValueError and OSError for what is wrong."""
    # diffusers, which --help does not need
    from train.memory import estimate

    if options.config:
        config = load_recipe(options.config)
        plan = plan_of(config, options.processes)
        print(f"{config.name}: {plan.batch} picture(s) of {plan.width}x{plan.height}, {plan.tokens} tokens each; base "
              f"{plan.dtype}{', folded' if plan.fold else ''}{_sharing(plan, config)}, LoRA of rank {plan.lora.rank}")  # fmt: skip
        if not options.dry_run:
            print("\n".join(lines(estimate(plan))))
        return 0
    if options.write and not options.write.is_file():
        raise FileNotFoundError(f"there is no file '{options.write}' to write the tables into")
    print(f"{len(SIZES) * len(PRECISIONS) * 2} step(s) to count: {len(SIZES)} sizes, {', '.join(PRECISIONS)}, folded or not")
    if options.dry_run:
        return 0
    tables = {"memory": memory_table(), "cost": cost_table()}
    for name, text in tables.items():
        print(f"\n{text}")
        if options.write:
            write_between(options.write, name, text)
    return 0


def _sharing(plan: StepPlan, config: FinetuneConfig) -> str:
    """How the base is divided, if at all."""
    if plan.shards > 1:
        return f", divided among {plan.shards} processes of which this is one"
    return ", whole in one process (--processes N divides it)" if config.base.shard else ""


def lines(found: Estimate) -> list[str]:
    """An `Estimate` in words, in GiB."""
    from train.memory import CONTEXT_BYTES, SPARE

    def row(name: str, size: int) -> str:
        return f"  {name:<24}{size / GIB:6.2f} GiB"

    largest = max(found.stages, key=lambda key: found.stages[key])
    spare = round(SPARE * found.stages[largest])
    return [
        "stays:", *(row(name, size) for name, size in found.stays.items()),
        "comes and goes, on top of that:", *(row(name, size) for name, size in found.stages.items()),
        "assumed, not measured:", row("CUDA and libraries", CONTEXT_BYTES), row(f"allocator, {SPARE:.0%}", spare),
        f"peak, in '{largest}':        {found.total / GIB:.1f} GiB ({found.total / 1e9:.1f} GB)",
    ]  # fmt: skip


def memory_note(config: FinetuneConfig, processes: int, capacity: int | None) -> str:
    """One line on what a run will need of each GPU; with what to change where that is more than `capacity` bytes."""
    from train.memory import estimate

    needed = estimate(plan_of(config, processes)).total
    note = f"estimated GPU memory: {needed / GIB:.1f} GiB (`python -m train memory --config` has the parts)"
    if capacity is None or needed <= capacity:
        return note
    return (f"{note}; this GPU has {capacity / GIB:.1f} GiB. Ways to need less: [base] fold = true, dtype = 'fp8' or "
            "'nf4'; [training] gradient_checkpointing = true; a smaller [data] batch or smaller pictures")


def plan_of(config: FinetuneConfig, processes: int = 1) -> StepPlan:
    """A run's step on one of its devices, as a `StepPlan`: at the largest picture of its datasets.

    What the base needs is read from its file's header; without the file, the released sizes are assumed. Raises
    ValueError for a batch that the processes cannot share."""
    from train.memory import RELEASED, RELEASED_AUTOENCODER, StepPlan

    if processes < 1 or config.data.batch % processes:
        raise ValueError(f"[data] batch is {config.data.batch}, which {processes} processes cannot share equally")
    height, width = max(((s.config.height, s.config.width) for s in config.data.sources), key=lambda side: side[0] * side[1])
    files = config.base
    plan = StepPlan(
        height, width, config.data.batch // processes, RELEASED, RELEASED_AUTOENCODER,
        text_tokens=_ENCODER_TOKENS if files.conditioning else _CACHE_TOKENS,
        dtype=files.dtype, fold=files.fold,
        gradient_checkpointing=config.training.gradient_checkpointing, objective=config.objective, lora=config.lora,
        dispersive=config.dispersive, optimizer=config.training.optimizer, averaged=config.training.ema > 0,
        validation=config.validation.every > 0, shards=processes if files.shard else 1,
    )  # fmt: skip
    return _with_files(plan, files)


def _with_files(plan: StepPlan, files: BaseFiles) -> StepPlan:
    """The plan with what the headers of the base's files say."""
    from train.backend import autoencoder_shape

    if files.checkpoint and os.path.isfile(files.checkpoint):
        with TensorFile(files.checkpoint, "checkpoint") as file:
            found = read_checkpoint(file)
            return replace(
                plan, size=transformer_size(found.transformer, "checkpoint"), autoencoder=autoencoder_shape(found.vae),
                text_tokens=found.conditioning.context.shape[1], guidance=has_guidance(found.transformer),
                fold=plan.fold or is_folded(found.transformer),
            )  # fmt: skip
    if files.transformer and os.path.isfile(files.transformer):
        with TensorFile(files.transformer, "transformer") as file:
            tensors = Dequantized(file, file.metadata, "transformer")
            size = transformer_size(tensors, f"transformer '{file.path.name}'")
            plan = replace(plan, size=size, guidance=has_guidance(tensors))
    if files.vae and os.path.isfile(files.vae):
        with TensorFile(files.vae, "VAE") as file:
            plan = replace(plan, autoencoder=autoencoder_shape(file))
    if files.prompt_cache and os.path.isfile(files.prompt_cache):
        plan = replace(plan, text_tokens=read_prompt_cache(files.prompt_cache)[0].shape[0])
    if files.conditioning and os.path.isfile(files.conditioning):
        with TensorFile(files.conditioning, "conditioning") as file:
            plan = replace(plan, text_tokens=file["context"].shape[1])
    return plan


def _plan(dtype: str, fold: bool, size: tuple[int, int]) -> StepPlan:
    """One picture of a size at a time, as fe2e_24gb.toml trains it, on the released base stored in this way."""
    from train.memory import StepPlan

    return StepPlan(*size, dtype=dtype, fold=fold, lora=LoraShape(constants=fold),
                    dispersive=DispersiveConfig(source="queue", queue=4))  # fmt: skip


def memory_table() -> str:
    """Markdown: peak in GiB of one picture's step by size, precision and folding."""
    from train.memory import estimate

    rows = []
    for dtype in PRECISIONS:
        for fold in (False, True):
            found = [estimate(_plan(dtype, fold, size)) for size in SIZES]
            peaks = " | ".join(f"{one.total / GIB:.1f}" for one in found)
            rows.append(f"| {_stored(dtype, fold)} | {found[0].stays['base'] / GIB:.1f} | {peaks} |")
    head = " | ".join(f"{width}x{height}" for height, width in SIZES)
    return "\n".join([f"| base | its weights | {head} |", "|---|---|" + "---|" * len(SIZES), *rows])


def cost_table() -> str:
    """Markdown: by card, the best base that it has room for, and estimated times."""
    from train.cost import ASSUMED_SHARE, CARDS, PAPER_EPOCHS, PAPER_PICTURES, seconds_a_picture
    from train.memory import estimate

    rows = []
    for card in CARDS:
        room = (way for way in BEST_FIRST if estimate(_plan(*way, SIZES[-1])).total < USABLE * card.gib * GIB)
        way = next(room, None)
        seconds = [seconds_a_picture(_plan("bf16", False, size), card) for size in SIZES]
        days = seconds[-1] * PAPER_PICTURES / 86400
        rows.append(f"| {card.name} | {card.gib} | {_stored(*way) if way else 'none'} | "
                    f"{' | '.join(f'{s:.1f}' for s in seconds)} | {days:.1f} | {days * PAPER_EPOCHS:.0f} |")  # fmt: skip
    width, height = SIZES[-1][1], SIZES[-1][0]
    sizes = " | ".join(f"s a picture, {width}x{height}" for height, width in SIZES)
    head = (f"| card | GiB | base that fits at {width}x{height} | {sizes} | days for {PAPER_PICTURES:,} pictures | "
            f"for {PAPER_EPOCHS} times as many |")  # fmt: skip
    note = (f"Seconds are operations at {ASSUMED_SHARE:.0%} of the card's BF16 peak by its maker's data sheet, which no run has "
            f"confirmed. A base fits when its estimate is below {USABLE:.0%} of the card's memory.")  # fmt: skip
    return "\n".join([head, "|---|---|---|" + "---|" * (len(SIZES) + 2), *rows, "", note])


def _stored(dtype: str, fold: bool) -> str:
    return f"{dtype}, {'folded' if fold else 'whole'}"


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- end of name -->`. Raises ValueError without these marks."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before = path.read_text(encoding="utf-8")
    after, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", before, flags=re.S)
    if count != 1:
        raise ValueError(f"'{path}' has {count} places between {begin} and {end}; expected one")
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(after, encoding="utf-8")
    os.replace(temporary, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb on its own."""
    parser = argparse.ArgumentParser(prog="python -m train memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
