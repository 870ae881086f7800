"""The share of the work that one of several processes does, read ahead of the network in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from train.prediction.inputs import PICTURE, SHARD, VIDEO, Work
from train.prediction.outputs import Store, part_name
from train.prediction.reading import BadInput, Shard, Video, decode_picture, read_file

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Process `rank` of `ranks`: every so-manieth picture, frame of a video, and shard. A shard is not divided, as
    its results are one file."""

    rank: int = 0
    ranks: int = 1

    def takes(self, number: int) -> bool:
        return number % self.ranks == self.rank


@dataclass(frozen=True)
class ReadOptions:
    """every: of a video, every so-manieth frame, from the first. extension: of the picture in a shard's samples,
    see `Shard`."""

    every: int = 1
    extension: str = ""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: found {self.every}, expected at least 1")


@dataclass(frozen=True)
class Event:
    """Something about one input. source: the input, as messages name it. name: under which it is noted when it is
    bad. done: how many bytes of this process's share are read by then."""

    source: str
    name: str
    done: int


@dataclass(frozen=True)
class Ready(Event):
    """A picture (H,W,3) to predict; its files are called `stem` and an ending."""

    stem: Path
    image: Tensor


@dataclass(frozen=True)
class Finished(Event):
    """Its results are there from an earlier run."""


@dataclass(frozen=True)
class Bad(Event):
    """It cannot be used."""

    reason: str


@dataclass(frozen=True)
class ShardRead(Event):
    """All samples of a shard were given out; keys: theirs, in order."""

    keys: tuple[str, ...]


def share_of(work: Iterable[Work], share: Share) -> list[Work]:
    """What a process has to read: its pictures and shards, counted by kind so that both are spread evenly, and all
    videos."""
    counts = {PICTURE: 0, SHARD: 0}
    mine = []
    for item in work:
        if item.kind == VIDEO:
            mine.append(item)
            continue
        if share.takes(counts[item.kind]):
            mine.append(item)
        counts[item.kind] += 1
    return mine


def read_share(work: Iterable[Work], share: Share, store: Store, options: ReadOptions) -> Iterator[Event]:
    """Read a process's share (see `share_of`), whatever is finished left unread."""
    done = 0
    for item in work:
        if item.kind == PICTURE:
            yield _picture(item, store, done + item.bytes)
        elif item.kind == VIDEO:
            yield from _video(item, share, store, options, done)
        else:
            yield from _shard(item, store, options, done)
        done += item.bytes


def _picture(work: Work, store: Store, done: int) -> Event:
    source, stem = str(work.path), store.folder / work.name
    if store.finished(stem):
        return Finished(source, work.name, done)
    try:
        return Ready(source, work.name, done, stem, decode_picture(read_file(work.path)))
    except BadInput as error:
        return Bad(source, work.name, done, str(error))


def _video(work: Work, share: Share, store: Store, options: ReadOptions, before: int) -> Iterator[Event]:
    """Frames are called by their numbers in the video."""
    source, end = str(work.path), before + work.bytes
    try:
        video = Video(work.path)
    except BadInput as error:
        # every process sees it; one says so
        if share.rank == 0:
            yield Bad(source, work.name, end, str(error))
        return
    with video:
        number = 0
        while video.skip():
            if number % options.every == 0 and share.takes(number // options.every):
                done = before + work.bytes * min(number + 1, video.frames) // max(1, video.frames)
                yield _frame(video, f"{source} frame {number}", f"{work.name}/{number:06d}", store, done)
            number += 1
        if share.rank == 0:
            if number == 0:
                yield Bad(source, work.name, end, "not one frame of it can be decoded")
            elif number < 0.95 * video.frames - 2:
                reason = f"it ends after {number} of about {video.frames} frames; those are predicted"
                yield Bad(source, work.name, end, reason)


def _frame(video: Video, source: str, name: str, store: Store, done: int) -> Event:
    stem = store.folder / name
    if store.finished(stem):
        return Finished(source, name, done)
    try:
        return Ready(source, name, done, stem, video.frame())
    except BadInput as error:
        return Bad(source, name, done, str(error))


def _shard(work: Work, store: Store, options: ReadOptions, before: int) -> Iterator[Event]:
    source, end = str(work.path), before + work.bytes
    if (store.folder / work.name).exists():
        store.drop(work.name)
        yield Finished(source, work.name, end)
        return
    keys: list[str] = []
    try:
        with Shard(work.path, options.extension) as shard:
            for sample in shard:
                number = len(keys)
                keys.append(sample.key)
                name, done = f"{work.name}/{part_name(number)}", before + sample.end
                stem = store.parts(work.name) / part_name(number)
                if store.finished(stem):
                    yield Finished(f"{source} {sample.key}", name, done)
                    continue
                try:
                    image = decode_picture(shard.read(sample))
                    yield Ready(f"{source} {sample.key}", name, done, stem, image)
                except BadInput as error:
                    yield Bad(f"{source} {sample.key}", name, done, str(error))
        if not keys:
            raise BadInput("it has no samples")
    except BadInput as error:
        yield Bad(source, work.name, end, str(error))
    if keys:
        yield ShardRead(source, work.name, end, tuple(keys))


class Ahead(Generic[T]):
    """An iterator run in a thread, a few items ahead. Use as a context manager: leaving it stops the thread."""

    def __init__(self, items: Iterator[T], ahead: int):
        self._items = items
        self._queue: queue.Queue = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._given()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
            self._put((None, None))
        except BaseException as error:  # belongs to whoever waits for the items
            self._put((None, error))

    def _put(self, entry: tuple[T | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _given(self) -> Iterator[T]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
