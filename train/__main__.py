"""`python -m train <verb>`: training and scoring from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.tensorfile import TensorFile
from train import convert, curves, empty_prompt, fetch, inspect, lora, memory_report, pack, predict
from train.bench import command as bench
from train.config import NanoConfig, load_config
from train.mixtures import MIXTURES
from train.online import command as online
from train.thesis import command as thesis

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Verb:
    """One command: how it is described, what it takes, and what it does (returning the exit status)."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _nano_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIGS / "nano.toml", help="TOML file (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("models/fe2e-nano.safetensors"), help="checkpoint to write")
    parser.add_argument("--work", help="folder for what a stopped run resumes from (default: the config's)")
    parser.add_argument("--dry-run", action="store_true", help="check the configuration, say what would be done, stop")
    parser.add_argument("--no-score", action="store_true", help="do not score the result on held-out scenes")


def _nano(arguments: argparse.Namespace) -> int:
    from train.nano import plan, train_nano

    config = load_config(arguments.config, NanoConfig)
    if arguments.work:
        config = dataclasses.replace(config, work=arguments.work)
    print("\n".join(plan(config, arguments.out)))
    if arguments.dry_run:
        return 0
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    train_nano(config, arguments.out, lambda line: print(line, flush=True))
    return 0 if arguments.no_score else _score(arguments.out, config.held_out, None, arguments.out.with_suffix(".json"))


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("models/fe2e-nano.safetensors"))
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels (default: as trained)")
    parser.add_argument("--mixture", choices=list(MIXTURES), default="second",
                        help="kinds of scenes: the first model's, the second's, or a kind never trained on (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--dry-run", action="store_true", help="check the checkpoint, say what would be scored, stop")


def _score_nano(arguments: argparse.Namespace) -> int:
    size = tuple(arguments.size) if arguments.size else None
    if arguments.dry_run:
        with TensorFile(arguments.checkpoint, "checkpoint") as file:
            name = read_checkpoint(file).info.name
        print(f"{name}: {arguments.scenes} held-out scenes at {'{}x{}'.format(*size) if size else 'the trained size'}")
        return 0
    return _score(arguments.checkpoint, arguments.scenes, size, arguments.json, arguments.mixture)


def _score(
    checkpoint: Path, scenes: int, size: tuple[int, int] | None, json_file: Path | None, mixture: str = "first"
) -> int:
    from train.evaluation import compare

    result = compare(checkpoint, scenes=scenes, size=size, mixture=mixture)
    print(f"{result.scenes} held-out scenes of the mixture '{mixture}' at {result.width}x{result.height}, seeds from {result.first_seed}")
    print(result.table())
    if json_file is not None:
        json_file.write_text(result.to_json() + "\n", encoding="utf-8")
    return 0


VERBS = (
    Verb("fetch", "download the released model, verified, into ComfyUI's folders", fetch.add_arguments, fetch.run),
    Verb("pack", "make one folded FE2E checkpoint of the released files, or store one otherwise", pack.add_arguments, pack.run),
    Verb("inspect", "check the datasets of a configuration and draw samples of them", inspect.add_arguments, inspect.run),
    Verb("memory", "estimate the GPU memory of a run, and its time by card", memory_report.add_arguments, memory_report.run),
    Verb("empty-prompt", "the constant conditioning of a FLUX.1 base, by its text encoders", empty_prompt.add_arguments,
         empty_prompt.run),
    Verb("lora", "fine-tune a LoRA; train/configs/ has the paper's recipes", lora.add_arguments, lora.run),
    Verb("curves", "the loss curves of several runs over each other, as PNG and CSV", curves.add_arguments, curves.run),
    Verb("convert", "a LoRA of kohya's format into diffusers' or peft's, or back", convert.add_arguments, convert.run),
    Verb("predict", "depth and normals of files, folders, videos and shards, without ComfyUI", predict.add_arguments, predict.run),
    Verb("evaluate", "the paper's nine benchmarks, for a checkpoint or any program's predictions", bench.add_arguments, bench.run),
    Verb("thesis", "the paper's claims in miniature: an editor and a generator become estimators", thesis.add_arguments, thesis.run),
    Verb("nano", "train the embedded demonstration model from nothing", _nano_arguments, _nano),
    Verb("online", "train it further on scenes that a GPU renders while it trains", online.add_arguments, online.run),
    Verb("score-nano", "score a small checkpoint on held-out procedural scenes", _score_arguments, _score_nano),
)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; 0 on success, 2 for a wrong configuration or a missing file."""
    parser = argparse.ArgumentParser(prog="python -m train", description="Training and scoring for FE2E.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        child = verbs.add_parser(verb.name, help=verb.summary, description=verb.summary)
        verb.add_arguments(child)
        child.set_defaults(run=verb.run)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
