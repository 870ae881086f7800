"""What the stages share: the device, the stream of scenes, the schedule, saving, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from train.mixtures import MIXTURES
from train.online.config import OnlineConfig
from train.online.scenes import SceneStream, Size
from train.online.source import WorldSource
from train.precision import fast_autocast
from train.scenes import HELD_OUT
from train.state import load_state, save_state
from train.transformer import learning_factor

Stepping = Callable[[int], Tensor]
"""Step number -> its loss, a scalar whose gradients have been computed."""


class OutOfTime(Exception):
    """The run's time is over; what is saved is where the next one begins."""


class Run:
    """One run on one device. Stages call `train`."""

    def __init__(self, config: OnlineConfig, device: torch.device, minutes: float, on_step: Callable[[str], None]):
        if config.mixture not in MIXTURES:
            raise ValueError(f"mixture is {config.mixture!r}; choose one of {', '.join(MIXTURES)}")
        if any(len(size) != 2 or any(side % 16 or side < 16 for side in size) for size in config.sizes):
            raise ValueError(f"sizes are {config.sizes}; expected [height, width] in multiples of 16")
        self.config, self.device, self.on_step = config, device, on_step
        self.compiled = device.type == "cuda"
        self.folder = Path(config.work)
        self.ends = time.monotonic() + 60 * minutes if minutes else float("inf")
        if self.compiled:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.enable_cudnn_sdp(False)  # its backward fails for 436 tokens (PyTorch 2.11, H100)
        self._source: WorldSource | None = None

    def size(self, step: int) -> Size:
        sizes = self.config.sizes
        return sizes[step % len(sizes)]

    def autocast(self):
        return fast_autocast(self.device.type)

    def open_stream(self, stage: int) -> SceneStream:
        """The stream of a stage; all stages of a run share the processes that draw worlds, and go on in their order."""
        stream = self.config.stream
        if self._source is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            marker = self.folder / "starts"
            # A run that goes on draws other worlds than the part before: ten million seeds further.
            starts = int(marker.read_text()) if marker.exists() else 0
            first = self.config.first_seed + starts * 10_000_000
            if first + 10_000_000 > HELD_OUT:
                raise ValueError(f"seeds from {first} reach the held-out ones; use a smaller first_seed or a fresh work folder")
            marker.write_text(str(starts + 1))
            self._source = WorldSource(self.config.mixture, first, stream.workers)
        return SceneStream(
            self._source, self.device, stream.batch, stream.views, stream.window_share, stream.seed + stage, self.compiled
        )

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def train(
        self,
        stage: str,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        rates: Sequence[float],
        steps: int,
        warmup: int,
        minutes: float,
        save_every: int,
        step: Stepping,
        average: dict[str, Tensor] | None = None,
        ema: float = 0.0,
        clip: float = 1.0,
    ) -> None:
        """All steps of a stage, or those that are left; with `minutes` (not 0) it ends after this long, and its schedule is then
        one of time where time is shorter than steps. `average` is filled with the moving average of the weights.

        Raises OutOfTime after saving, and FloatingPointError for a loss that is no number.
        """
        file = self.folder / f"{stage}.safetensors"
        first = load_state(file, model, optimizers, average)
        if average is not None:
            for name, value in model.state_dict().items():
                average[name] = average[name].to(self.device) if name in average else value.detach().clone()
        trained = [p for p in model.parameters() if p.requires_grad]
        losses: list[Tensor] = []
        stage_began = began = time.monotonic()
        number, progress = first, first / max(1, steps)
        while progress < 1:
            factor = learning_factor(progress * steps, steps, warmup)
            loss = step(number)
            passed = (time.monotonic() - stage_began) / (60 * minutes) if minutes else 0.0
            progress = max((number + 1) / steps, passed)
            torch.nn.utils.clip_grad_norm_(trained, clip)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
                optimizer.step()
            for parameter in model.parameters():
                parameter.grad = None
            if average is not None:
                keep = min(ema, (number + 1) / (number + 10))
                state = model.state_dict()
                with torch.no_grad():
                    torch._foreach_lerp_([average[name] for name in state], list(state.values()), 1 - keep)
            losses.append(loss.detach())
            if (number + 1) % 50 == 0 or number - first in (0, 9) or progress >= 1:  # the first tell that it runs
                mean = float(torch.stack(losses).mean())
                if not np.isfinite(mean):
                    raise FloatingPointError(f"{stage} step {number + 1}: the loss is {mean}; lower the learning rate")
                speed = (time.monotonic() - began) / len(losses)
                self.on_step(f"{stage} {number + 1}/{steps} loss {mean:.4f} {speed:.3f} s/step")
                losses.clear()
                began = time.monotonic()
            over = time.monotonic() > self.ends
            if (number + 1) % save_every == 0 or progress >= 1 or over:
                save_state(file, model, optimizers, steps if progress >= 1 else number + 1, average)
            if over and progress < 1:
                raise OutOfTime(f"{stage}: stopped after step {number + 1} of {steps}")
            number += 1

