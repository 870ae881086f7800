"""Which pictures make up which batch: a mixture of datasets, deterministic and resumable.

Each batch comes from one dataset, chosen by probability (paper 4.2: 90 % Hypersim, 10 % Virtual KITTI), so it
has one resolution. A dataset's pictures come in a new random order each time round. Everything follows from
the seed, the number of the batch and how many pictures each dataset has given so far: that is the whole
state, however many processes and workers read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.data.frame import Source

_CHOICE, _ORDER, _MIRROR, _SUBSTITUTE = range(4)


@dataclass(frozen=True)
class Draw:
    """One picture of a batch: which dataset (position in the mixture), which picture of it, mirrored or not.

    `batch` and `place` say where it goes; a substitute for an unreadable picture follows from them.
    """

    source: int
    index: int
    mirrored: bool
    batch: int
    place: int


class Mixture:
    """Datasets with weights. Raises ValueError for no dataset, two of one name, or senseless weights or
    sizes.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], seed: int = 0, mirror: float = 0.5
    ):
        names = [source.name for source in sources]
        if not sources or len(sources) != len(weights) or len(set(names)) < len(names):
            raise ValueError(
                f"mixture: datasets {names} with weights {list(weights)}; expected different names, one "
                "weight each"
            )
        if min(weights) < 0 or not sum(weights) > 0 or not 0 <= mirror <= 1:
            raise ValueError(
                f"mixture: weights {list(weights)}, mirror {mirror}; expected weights of at least 0, not "
                "all of them 0, and a "
                "probability"
            )
        for source in sources:
            if source.size[0] % 16 or source.size[1] % 16 or min(source.size) < 16:
                raise ValueError(
                    f"mixture: '{source.name}' gives {source.size[0]}x{source.size[1]} pixels; expected "
                    "multiples of 16"
                )
        self.sources = tuple(sources)
        self.weights = tuple(float(w) / sum(weights) for w in weights)
        self.seed = seed
        self.mirror = mirror

    def fingerprint(self) -> str:
        """Changes when the same state would give other pictures."""
        about = [[s.name, list(s.size), s.length] for s in self.sources]
        text = json.dumps([about, self.weights, self.seed, self.mirror])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def substitute(self, draw: Draw, attempt: int) -> Draw:
        """Another picture of the same dataset for one that cannot be used; the same one each time."""
        rng = np.random.default_rng([self.seed, _SUBSTITUTE, draw.batch, draw.place, attempt])
        length = self.sources[draw.source].length
        index = int(rng.integers(length if length is not None else 2**31))
        return Draw(draw.source, index, draw.mirrored, draw.batch, draw.place)


class MixtureSampler:
    """Batches of draws without end. `batch` is the global batch: over all processes, before it is divided.

    Raises ValueError for a batch that is no multiple of the number of processes.
    """

    def __init__(self, mixture: Mixture, batch: int, rank: int = 0, ranks: int = 1):
        if batch < 1 or batch % ranks or not 0 <= rank < ranks:
            raise ValueError(
                f"sampler: batch {batch} for process {rank} of {ranks}; expected a multiple of the processes"
            )
        self._mixture = mixture
        self._batch = batch
        self._own = slice(rank * batch // ranks, (rank + 1) * batch // ranks)
        self._number = 0
        self._given = [0] * len(mixture.sources)
        self._order: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[Draw]]:
        while True:
            yield self.next_batch()

    def next_batch(self) -> list[Draw]:
        """This process's share of the next global batch."""
        seed, number = self._mixture.seed, self._number
        rng = np.random.default_rng([seed, _CHOICE, number])
        source = int(rng.choice(len(self._mixture.sources), p=self._mixture.weights))
        mirrored = np.random.default_rng([seed, _MIRROR, number]).random(self._batch) < self._mixture.mirror
        first = self._given[source]
        draws = [
            Draw(source, self._index(source, first + place), bool(mirrored[place]), number, place)
            for place in range(self._batch)
        ]
        self._given[source] += self._batch
        self._number += 1
        return draws[self._own]

    def _index(self, source: int, count: int) -> int:
        """The picture that the dataset gives as its `count`-th."""
        length = self._mixture.sources[source].length
        if length is None:
            return count
        rounds, place = divmod(count, length)
        if self._order.get(source, (-1,))[0] != rounds:
            order = np.random.default_rng([self._mixture.seed, _ORDER, source, rounds]).permutation(length)
            self._order[source] = (rounds, order)
        return int(self._order[source][1][place])

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands; plain numbers and text, fit for JSON."""
        return {
            "fingerprint": self._mixture.fingerprint(),
            "batch": self._batch,
            "number": self._number,
            "given": list(self._given),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken. Raises ValueError when the data or the batch are
        others now.
        """
        if state["fingerprint"] != self._mixture.fingerprint() or state["batch"] != self._batch:
            raise ValueError(
                "the run to be resumed had other data: datasets, their sizes and lengths, weights, seed "
                "and global batch must "
                f"be the same (batch then {state['batch']}, now {self._batch}). Restore them, or start a "
                "new run"
            )
        self._number = int(state["number"])
        self._given = [int(count) for count in state["given"]]
