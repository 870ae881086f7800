"""Random worlds by several processes, in an order that does not depend on which of them is quicker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
import torch.multiprocessing as multiprocessing

from train.mixtures import sample_mixture
from train.online.packing import Worlds, fits, pack_worlds
from train.replicas import leave_with_parent

PACKET = 32
"""Worlds that travel together."""
_AHEAD = 8
"""Packets that one process may have ready."""


def draw_packet(number: int, mixture: str, first_seed: int) -> Worlds:
    """The `number`-th PACKET worlds: those of `render_scene` for seeds from first_seed + number * PACKET, each the first of
    its generator that can be packed."""
    drawn = []
    for seed in range(first_seed + number * PACKET, first_seed + (number + 1) * PACKET):
        rng = np.random.default_rng([2, seed])
        world, camera = sample_mixture(rng, mixture)
        while not fits(world):
            world, camera = sample_mixture(rng, mixture)
        drawn.append((world, camera))
    return pack_worlds(drawn)


def _draw(queue, mixture: str, first_seed: int, worker: int, workers: int, begin: int) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    number = begin + worker
    while True:
        packet = draw_packet(number, mixture, first_seed)
        queue.put({f.name: getattr(packet, f.name).numpy() for f in fields(packet)})
        number += workers


class WorldSource:
    """Iterate over packets of worlds, from packet `begin` on, for ever; `close` ends the processes."""

    def __init__(self, mixture: str, first_seed: int, workers: int, begin: int = 0):
        context = multiprocessing.get_context("spawn")
        self._queues = [context.Queue(_AHEAD) for _ in range(max(1, workers))]
        self._number = 0
        self._processes = [
            context.Process(target=_draw, args=(queue, mixture, first_seed, i, len(self._queues), begin), daemon=True)
            for i, queue in enumerate(self._queues)
        ]
        for process in self._processes:
            process.start()

    def __iter__(self) -> Iterator[Worlds]:
        return self

    def __next__(self) -> Worlds:
        found = self._queues[self._number % len(self._queues)].get(timeout=120)
        self._number += 1
        return Worlds(**{name: torch.from_numpy(array) for name, array in found.items()})

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
