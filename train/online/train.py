"""From a first small model to a second one: the stages one after the other, and the file after each."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path

import torch

from train.config import NanoConfig, ScenePool
from train.nano import blended, open_start, write_nano
from train.online.config import OnlineConfig
from train.online.quick import quick_score
from train.online.run import OutOfTime, Run
from train.online.stages import train_autoencoder, train_behind_decoder, train_on_latents


def train_online(config: OnlineConfig, device: torch.device, out: Path, minutes: float = 0, dry_run: bool = False) -> bool:
    """All stages; writes `out` after each that has finished. False when the time was over before the end.

    Raises FileNotFoundError or ValueError for a configuration that cannot work.
    """
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    run = Run(config, device, minutes, say)
    # What is written, and what `start` may be, is told as for the first model.
    like = NanoConfig(name=config.name, start=config.start, transformer_shape=config.transformer_shape,
                      pool=ScenePool(sizes=config.sizes))
    like = dataclasses.replace(like, small=dataclasses.replace(like.small, scale=1.0),
                               transformer=dataclasses.replace(like.transformer, fine_steps=0))
    if not Path(config.start).is_file():
        raise FileNotFoundError(f"start {config.start}: there is no such file; give a small FE2E checkpoint")
    height, width = config.sizes[0]
    say(f"{config.autoencoder.steps} + {config.transformer.steps} + {config.pixels.steps} steps on {device} at {width}x{height}")
    if dry_run:
        return True
    start = open_start(like)
    autoencoder, model = start.autoencoder, start.model
    out.parent.mkdir(parents=True, exist_ok=True)

    def finished(stage: str) -> None:
        write_nano(out, like, model.to("cpu"), autoencoder.to("cpu"))
        score = quick_score(model.to(device), autoencoder.to(device), config.mixture, config.held_out, config.sizes[0], device)
        say(f"{stage} done; {config.held_out} held-out scenes: AbsRel {score[0]:.4f}, angle {score[1]:.2f}")

    try:
        autoencoder = train_autoencoder(run, autoencoder)
        finished("autoencoder")
        model = train_on_latents(run, autoencoder, model)
        finished("transformer")
        before = copy.deepcopy(model), copy.deepcopy(autoencoder)
        model, autoencoder = train_behind_decoder(run, autoencoder, model)
        finished("pixels")
        if config.blend:
            model, autoencoder = blended([before[0], model]), blended([before[1], autoencoder])
            finished("mean of the last two")
    except OutOfTime as stop:
        say(f"{stop}; the same command goes on")
        return False
    finally:
        run.close()
    say(f"wrote {out}")
    return True
