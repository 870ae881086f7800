"""Trackers of a run besides its own files: TensorBoard, and Weights & Biases where it is asked for."""

from __future__ import annotations

import importlib.util
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from train.recipe import WatchConfig

log = logging.getLogger(__name__)

_WANDB_ID = "wandb.id"


class Trackers:
    """The trackers of one run. What one of them raises is logged and ends that tracker, never the run.

    step: the last finished one. What TensorBoard was told of later steps before a kill is taken back; W&B
    ignores the repeated ones."""

    def __init__(self, config: WatchConfig, folder: Path, name: str, step: int, settings: str):
        self._open: list[GeneralTracker] = []
        if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
            log.warning("TensorBoard is not installed; pip install tensorboard, or set [watch] tensorboard = false")
        elif config.tensorboard:
            self._open.append(TensorBoardTracker("", folder / "tensorboard", purge_step=step + 1))
        if config.wandb:
            run = {"name": name, "id": _wandb_id(folder), "resume": "allow", "dir": str(folder)}
            self._open.append(WandBTracker(config.wandb, config=json.loads(settings), **run))
        self._each(lambda tracker: tracker.start())

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Scalars by name."""
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """One picture (H,W,3) uint8."""

        def show(tracker: GeneralTracker) -> None:
            form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels[None]}, step=step, **form)

        self._each(show)

    def close(self) -> None:
        """Nothing more comes."""
        self._each(lambda tracker: tracker.finish())
        self._open = []

    def _each(self, act: Callable[[GeneralTracker], object]) -> None:
        for tracker in list(self._open):
            try:
                act(tracker)
            except Exception as error:  # a network, a service, a full disk: nothing that training depends on
                log.error("%s is left out from here on: %s", tracker.name, error)
                self._open.remove(tracker)


def _wandb_id(folder: Path) -> str:
    """The run's id at W&B, kept in its folder, so that a resumed run goes on there as well."""
    path = folder / _WANDB_ID
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
