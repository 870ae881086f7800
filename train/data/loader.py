"""Reading the pictures that a sampler chooses, ahead of time, by worker processes. Bad files never end a run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from train.data.augment import mirror
from train.data.frame import BadFrame, Batch, Frame, collate
from train.data.mixture import Draw, Mixture, MixtureSampler

log = logging.getLogger(__name__)

_ATTEMPTS = 20

T = TypeVar("T")


class Store(Protocol):
    """Where what is made of a picture may lie already: then its files are not read."""

    def find(self, draw: Draw) -> Any | None: ...


@dataclass(frozen=True)
class Given(Generic[T]):
    """One picture of a batch: what was drawn in the end (a substitute where a file was bad), what was made of
    it, and whether it was `found` in the store."""

    draw: Draw
    item: T
    found: bool


@dataclass(frozen=True)
class GivenBatch(Generic[T]):
    """The pictures of one batch of this process; `number` of the batch in the run."""

    number: int
    pictures: tuple[Given[T], ...]


class _Pictures(Dataset):
    """Draw -> what is made of it, with substitutes for what cannot be read, and what was wrong."""

    def __init__(self, mixture: Mixture, prepare: Callable[[Frame], Any] | None, store: Store | None):
        self._mixture = mixture
        self._prepare = prepare
        self._store = store

    def __getitem__(self, draw: Draw) -> tuple[Given, list[str]]:
        problems: list[str] = []
        current = draw
        for attempt in range(_ATTEMPTS):
            source = self._mixture.sources[current.source]
            try:
                found = self._store.find(current) if self._store is not None else None
                if found is not None:
                    return Given(current, found, True), problems
                frame = source.read(current.index)
                if not bool(frame.valid.any()):
                    raise BadFrame(f"{frame.name}: no pixel has a depth")
                frame = mirror(frame) if current.mirrored else frame
                return Given(current, self._prepare(frame) if self._prepare else frame, False), problems
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

    prepare: what a worker makes of each frame, the frame itself when None. store: where it may be found
    already. `bad` lists what was wrong with the pictures that had to be replaced, each once. `state_dict`
    stands at the last batch that was given out, not at the last one that was read ahead."""

    def __init__(
        self,
        mixture: Mixture,
        sampler: MixtureSampler,
        workers: int = 0,
        prepare: Callable[[Frame], Any] | None = None,
        store: Store | None = None,
    ):
        self._pictures = _Pictures(mixture, prepare, store)
        self._sampler = sampler
        self._workers = workers
        self._state = sampler.state_dict()
        self.bad: dict[str, None] = {}

    def given(self) -> Iterator[GivenBatch]:
        """Batches without end, from where the state stands, as what `prepare` makes of the frames."""
        self._sampler.load_state_dict(self._state)
        states: deque[dict[str, Any]] = deque()

        def batches() -> Iterator[list[Draw]]:
            for draws in self._sampler:
                states.append(self._sampler.state_dict())
                yield draws

        loader = DataLoader(
            self._pictures,
            batch_sampler=batches(),
            num_workers=self._workers,
            collate_fn=list,
            worker_init_fn=_one_thread,
            multiprocessing_context="spawn" if self._workers else None,
            # its own, so that starting to read again leaves the run's random state as it is
            generator=torch.Generator(),
        )
        for pairs in loader:
            self._state = states.popleft()
            for _, problems in pairs:
                for problem in problems:
                    if problem not in self.bad:
                        self.bad[problem] = None
                        log.warning("replaced by another picture: %s", problem)
            yield GivenBatch(self._state["number"] - 1, tuple(given for given, _ in pairs))

    def __iter__(self) -> Iterator[Batch]:
        """The frames themselves, as batches; only without `prepare`."""
        for batch in self.given():
            frames = [picture.item for picture in batch.pictures]
            yield collate(frames, frames[0].name.partition("/")[0], batch.number)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state after the last batch given out."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch that the state was taken at. Raises ValueError for another mixture."""
        self._sampler.load_state_dict(state)
        self._state = state


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
