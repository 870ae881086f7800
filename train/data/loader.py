"""Reading the batches that a sampler chooses, ahead of time, by worker processes. Bad files never end a run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from train.data.augment import mirror
from train.data.frame import BadFrame, Batch, Frame, collate
from train.data.mixture import Draw, Mixture, MixtureSampler

log = logging.getLogger(__name__)

_ATTEMPTS = 20


class _Pictures(Dataset):
    """Draw -> frame, with substitutes for what cannot be read, and what was wrong."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture

    def __getitem__(self, draw: Draw) -> tuple[Frame, list[str]]:
        problems: list[str] = []
        current = draw
        for attempt in range(_ATTEMPTS):
            source = self._mixture.sources[current.source]
            try:
                frame = source.read(current.index)
                if not bool(frame.valid.any()):
                    raise BadFrame(f"{frame.name}: no pixel has a depth")
                return (mirror(frame) if current.mirrored else frame), problems
            except (BadFrame, OSError) as error:
                problems.append(str(error))
                current = self._mixture.substitute(draw, attempt)
        raise BadFrame(
            f"'{source.name}': {_ATTEMPTS} pictures in a row cannot be used, the last: {problems[-1]}. "
            "Check the dataset with "
            "`python -m train inspect`"
        )


class Loader:
    """Batches of a mixture in the sampler's order, whatever the number of workers.

    `bad` lists what was wrong with the pictures that had to be replaced, each once. `state_dict` stands at
    the last batch that was given out, not at the last one that was read ahead."""

    def __init__(self, mixture: Mixture, sampler: MixtureSampler, workers: int = 0):
        self._mixture = mixture
        self._sampler = sampler
        self._workers = workers
        self._state = sampler.state_dict()
        self.bad: dict[str, None] = {}

    def __iter__(self) -> Iterator[Batch]:
        self._sampler.load_state_dict(self._state)
        states: deque[dict[str, Any]] = deque()

        def batches() -> Iterator[list[Draw]]:
            for draws in self._sampler:
                states.append(self._sampler.state_dict())
                yield draws

        loader = DataLoader(
            _Pictures(self._mixture),
            batch_sampler=batches(),
            num_workers=self._workers,
            collate_fn=list,
            worker_init_fn=_one_thread,
            multiprocessing_context="spawn" if self._workers else None,
        )
        for pairs in loader:
            self._state = states.popleft()
            for _, problems in pairs:
                for problem in problems:
                    if problem not in self.bad:
                        self.bad[problem] = None
                        log.warning("replaced by another picture: %s", problem)
            number = self._state["number"] - 1
            frames = [frame for frame, _ in pairs]
            yield collate(frames, frames[0].name.partition("/")[0], number)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state after the last batch given out."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that the state was taken at. Raises ValueError for another mixture."""
        self._sampler.load_state_dict(state)
        self._state = state


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
