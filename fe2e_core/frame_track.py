"""The way of a camera through a shot: every frame is matched with the key frame, and what these two leave open is
added up over anchors.

An anchor is the last frame from which the pictures could be followed clearly. Steps from frame to frame would be
shorter than flow can measure, and adding them up would add its errors; from the key frame on the pictures show too
little in common after a while, and depth alone cannot tell every motion from a change of scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .frame_match import Match, Reckoned, View, chain

_CLEAR = 0.65  # share of textured places met again from which on an anchor is still a good one

Matcher = Callable[[View, View, Tensor, Reckoned | None], Match]
"""(key, view, guess of the motion, reckoned motion) -> match."""


def still() -> Tensor:
    """(6,) no motion."""
    return torch.zeros(6, dtype=torch.float64)


@dataclass(frozen=True)
class Station:
    """A frame on the way, and the motion from the key frame to it: as matched (6,), and as added up."""

    view: View
    motion: Tensor = field(default_factory=still)
    reckoned: Reckoned = field(default_factory=Reckoned)


@dataclass
class Track:
    """`match` a frame, then `advance` to it with the scale that was found. onward (6,): from the anchor to the last
    frame.
    """

    key: View
    last: Station
    anchor: Station
    onward: Tensor = field(default_factory=still)
    _next: tuple[Tensor, Reckoned] = field(default_factory=lambda: (still(), Reckoned()))

    @staticmethod
    def begin(key: View) -> Track:
        """At a key frame."""
        # the way to the key frame itself is no guess
        start = Station(key, still(), Reckoned(doubt=0.0))
        return Track(key, start, start)

    @property
    def at_key(self) -> bool:
        """Whether nothing came after the key frame."""
        return self.last.view is self.key

    def match(self, view: View, matcher: Matcher) -> Match:
        """The next frame against the key frame."""
        step = None
        # without pictures there is nothing to be added up, and every frame is matched by way of the last one
        if self.last is self.anchor or _pictures(self.anchor.view, view):
            step = matcher(self.anchor.view, view, self.onward, None)
        if self.last is not self.anchor and not (step is not None and step.alike >= _CLEAR):
            self.anchor, self.onward = self.last, still()
            step = matcher(self.anchor.view, view, self.onward, None)
        self._next = self._added(step)
        if self.anchor.view is self.key:
            return step
        guess = self.anchor.motion
        if len(step.misses):
            guess = chain(self.key, guess, self.anchor.view, step.motion)
        return matcher(self.key, view, guess, self._next[1])

    def from_last(self, view: View, matcher: Matcher) -> Match:
        """The next frame against the last one, for which `rebase` makes it the key frame."""
        return matcher(self.last.view, view, still(), None)

    def rebase(self, match: Match) -> None:
        """Take the last frame for the key frame; match: of the next frame with it."""
        fresh = Track.begin(self.last.view)
        self.key, self.last, self.anchor = fresh.key, fresh.last, fresh.anchor
        self._next = self._added(match)

    def advance(self, view: View, match: Match) -> None:
        """To the frame that was matched, now with its scale."""
        self.onward, reckoned = self._next
        self.last = Station(view, match.motion, reckoned)

    def _added(self, step: Match) -> tuple[Tensor, Reckoned]:
        """Motion (6,) from the anchor on, and the way from the key frame by way of the anchor."""
        base = self.anchor.reckoned
        if not len(step.misses):
            return self.onward, Reckoned(self.last.reckoned.motion, base.doubt + 1)
        motion = chain(self.key, base.motion, self.anchor.view, step.motion)
        return step.motion, Reckoned(motion, math.hypot(base.doubt, step.doubt))


def _pictures(one: View, two: View) -> bool:
    return one.image is not None and two.image is not None
