"""What a run leaves to be looked at: rows of losses and scores, sheets of pictures, trackers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from train.data.sheet import write_sheet
from train.journal import LOSSES, VALIDATION, Journal
from train.recipe import FinetuneConfig
from train.trackers import Trackers
from train.validation import Scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step: mean losses over its batches (unweighted), gradient norm before clipping,
    learning rate.
    """

    step: int
    depth: float
    normal: float
    dispersive: float
    gradient: float
    rate: float


class Watch:
    """The watching of one run, in its folder, by its first process.

    step: the last finished one, None for a run that begins; what an earlier attempt noted after it is
    forgotten."""

    def __init__(self, config: FinetuneConfig, step: int | None):
        self._folder = config.folder
        self._losses, self._scores = Journal(self._folder / LOSSES), Journal(self._folder / VALIDATION)
        for journal in (self._losses, self._scores):
            journal.resume(-1 if step is None else step)
        self._trackers = Trackers(
            config.watch, self._folder, config.name, -1 if step is None else step, config.identity()
        )

    def stepped(self, report: StepReport) -> None:
        """Note one step."""
        row = asdict(report)
        self._losses.append(row)
        del row["step"]
        rate, gradient = row.pop("rate"), row.pop("gradient")
        values = {f"loss/{key}": value for key, value in row.items()}
        self._trackers.numbers(values | {"learning_rate": rate, "gradient_norm": gradient}, report.step)

    def validated(self, step: int, scores: Scores, rows: Sequence[Tensor]) -> None:
        """Note scores, and draw the sheet's rows (h,w,3) into `validation/step-....png`."""
        row = scores.as_row()
        self._scores.append({"step": step, **row})
        self._trackers.numbers({f"validation/{key}": value for key, value in row.items()}, step)
        log.info("step %d: validation %s", step, ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
        if not rows:
            return
        path = self._folder / "validation" / f"step-{step:08d}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_sheet(rows, path)
        except OSError as error:
            log.error("'%s' was not written (%s); the run goes on without", path, error)
        pixels = (torch.cat(list(rows)).clamp(0, 1) * 255).round().to(torch.uint8)
        self._trackers.picture("validation", pixels.numpy(), step)

    def close(self) -> None:
        """The run is over, or stops here."""
        self._trackers.close()
