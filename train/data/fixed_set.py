"""The same few pictures each time: what a run is validated on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from train.data.frame import BadFrame, Frame, Source

log = logging.getLogger(__name__)

_ORDER = 4711
_ATTEMPTS = 20


class FixedSet:
    """`pictures` pictures, spread evenly over datasets; fewer when these have fewer.

    A picture that cannot be used is replaced by another one, the same each time, on whatever process. Raises
    ValueError without datasets."""

    def __init__(self, sources: Sequence[Source], pictures: int):
        if not sources:
            raise ValueError("validation: there is no dataset")
        self._places: list[tuple[Source, list[int]]] = []
        for number, source in enumerate(sources):
            share = pictures // len(sources) + (number < pictures % len(sources))
            if source.length is None:
                order = np.arange(share * _ATTEMPTS)
            else:
                order = np.random.default_rng([_ORDER, number]).permutation(source.length)
            count = min(share, len(order))
            # every count-th: no picture is the replacement of two places
            self._places += [(source, order[place::count].tolist()) for place in range(count)]
        self._noted: set[str] = set()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Frame:
        """Raises BadFrame when nothing that may stand here can be used."""
        source, candidates = self._places[place]
        problem = ""
        for index in candidates[:_ATTEMPTS]:
            try:
                frame = source.read(index)
                valid = frame.depth[frame.valid]
                if len(valid) and float(valid.min()) < float(valid.max()):
                    return frame
                problem = f"{frame.name}: its depth has no range"
            except (BadFrame, OSError) as error:
                problem = str(error)
            if problem not in self._noted:
                self._noted.add(problem)
                log.warning("validation: replaced by another picture: %s", problem)
        raise BadFrame(
            f"validation: no picture of '{source.name}' for place {place + 1} can be used, the last: {problem}. "
            "Check the dataset with `python -m train inspect`"
        )
