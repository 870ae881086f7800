"""`python -m train online`: the embedded model trained on scenes that a GPU renders while it trains.

    python -m train online --config train/configs/nano_second.toml --out out/nano_second.safetensors

A stopped run (also by --minutes) goes on with the same command: it loses what came after the last save. On a CPU it does the
same, slowly.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from train.config import load_config
from train.online.config import OnlineConfig

CONFIG = Path(__file__).parent.parent / "configs" / "nano_second.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, help="TOML file (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/nano_second.safetensors"), help="checkpoint to write")
    parser.add_argument("--work", help="folder for what a stopped run resumes from (default: the config's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after this long, keeping everything; 0: at the end")
    parser.add_argument("--dry-run", action="store_true", help="check the configuration, say what would be done, stop")


def run(arguments: argparse.Namespace) -> int:
    from train.online.train import (
        train_online,  # not by the processes that draw worlds: diffusers takes seconds
    )

    config = load_config(arguments.config, OnlineConfig)
    if arguments.work:
        config = dataclasses.replace(config, work=arguments.work)
    train_online(config, torch.device(arguments.device), arguments.out, arguments.minutes, arguments.dry_run)
    return 0
