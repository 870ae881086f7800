"""Video: one scale for all frames of a shot, though the network normalises every frame by itself (Eq. 7).

Each frame's ln depth is a * label + b with unknown a and b. They are solved against a key frame of the same
shot (frame_match.py); key frames hold the drift, and a cut begins a new shot.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .frame_match import Match, Reckoned, View, match_frames
from .frame_track import Station, Track
from .strict_json import build_flat, parse_json

FORMAT = 1
_LITTLE = 0.2  # of a picture in sight is too little to judge by
_RECENT = 8  # frames whose agreement tells how exact the network is
_AS_WIDE = 0.03  # ln aspect ratio by which two clips may differ and still show the same
_ROUGHLY = 0.25  # part of the spread of ln depth within which a weak network still agrees with itself


@dataclass(frozen=True)
class TemporalOptions:
    """width: of the grid frames are compared on. first_log_range: of a shot's first frame, when nothing
    better is known. key_inliers: a new key frame once fewer points of the old one are met again.
    cut_inliers: a scene cut where less of the picture is met again (of the depth, where there are no
    pictures); 0 finds none. tolerance: ln depth that counts as the same, at least; more for a network that wavers. colour:
    difference in [0, 1] that tells two things apart.
    """

    width: int = 128
    first_log_range: float = 2.0
    key_inliers: float = 0.6
    cut_inliers: float = 0.35
    tolerance: float = 0.03
    colour: float = 0.15


@dataclass(frozen=True)
class FrameScale:
    """ln depth = log_range * (label + 1) / 2 + log_near for one frame. cut: it begins a new shot. key: it
    became a key frame. inliers: share of comparable points that agree; residual: their median |ln error|,
    0 where there was nothing to compare.
    """

    log_range: float
    log_near: float
    cut: bool
    key: bool
    inliers: float
    residual: float


@dataclass
class DepthStabilizer:
    """Streaming solver: `push` frames in order. Its state goes to JSON and back, for later shots and
    re-renders.
    """

    options: TemporalOptions = field(default_factory=TemporalOptions)
    fov_x_degrees: float = 60.0
    frames: list[FrameScale] = field(default_factory=list)
    _track: Track | None = None

    def push(
        self,
        label: Tensor,
        mask: Tensor | None = None,
        image: Tensor | None = None,
        log_range: float | None = None,
    ) -> FrameScale:
        """Solve the next frame: label (H, W) of Eq. 7, mask (H, W) bool, image (H, W, 3) in [0, 1] if there
        is one.

        log_range: of this frame, if calibrated; used where a shot begins.
        """
        view = self._view(label, mask, image)
        start = (log_range or self.options.first_log_range) / 2
        track = self._track
        if track is None:
            return self._begin(view, start, cut=bool(self.frames))
        match = track.match(view, self._match)
        agree = self._agreement(match)
        if agree * match.seen < self.options.key_inliers and not track.at_key:
            fresh = track.from_last(view, self._match)
            if fresh.better_than(match):
                # Too far from the key frame: the last frame takes its place.
                track.rebase(fresh)
                self.frames[-1] = replace(self.frames[-1], key=True)
                match, agree = fresh, self._agreement(fresh)
        if self._is_cut(match, agree):
            return self._begin(view, start, cut=True)
        if not len(match.misses):  # one picture, but nothing in it to compare
            gain, offset = track.last.view.scale
            match = replace(match, gain=gain, offset=offset)
        track.advance(replace(view, scale=(match.gain, match.offset)), match)
        # infinite is no number that the saved state could hold; zero says that there was nothing to compare
        residual = match.residual if len(match.misses) else 0.0
        return self._record(match.gain, match.offset, False, False, agree, residual)

    def _agreement(self, match: Match) -> float:
        """Share of the points seen that agree, as well as this network's frames usually do."""
        recent = sorted(f.residual for f in self.frames[-_RECENT:] if f.residual > 0)
        waver = 2.5 * recent[len(recent) // 2] if recent else math.inf
        return match.inliers(max(self.options.tolerance, min(waver, _roughly(self._track.key))))

    def _is_cut(self, match: Match, agree: float) -> bool:
        """The pictures decide where there are any, since a weak network's depth may waver from frame to
        frame; but depth that fits as well as ever outdoes a flash or a fade.
        """
        limit = self.options.cut_inliers
        if math.isnan(match.alike):
            met = match.inliers(max(self.options.tolerance, _roughly(self._track.key)))
            return met < limit or match.seen < min(_LITTLE, limit)
        return match.alike < limit and (match.seen < _LITTLE or agree < self.options.key_inliers)

    def _begin(self, view: View, gain: float, cut: bool) -> FrameScale:
        self._track = Track.begin(replace(view, scale=(gain, gain)))  # log_near 0: near plane one unit away
        return self._record(gain, gain, cut, True, 1.0, 0.0)

    def _record(
        self, gain: float, offset: float, cut: bool, key: bool, inliers: float, residual: float
    ) -> FrameScale:
        self.frames.append(FrameScale(2 * gain, offset - gain, cut, key, inliers, residual))
        return self.frames[-1]

    def _view(self, label: Tensor, mask: Tensor | None, image: Tensor | None) -> View:
        height, width = label.shape
        if mask is None:
            mask = torch.ones_like(label, dtype=torch.bool)
        mask = mask & (label.abs() != 1)  # cut off by the network, so without a depth of their own
        columns = min(self.options.width, width)
        size = (max(8, round(columns * height / width)), columns)
        if self._track is not None:  # a clip that goes on at another resolution is compared on the grid it began with
            rows, columns = self._track.key.label.shape
            if abs(math.log(height / width * columns / rows)) < _AS_WIDE:
                size = (rows, columns)
        weight = F.interpolate(mask[None, None].float(), size=size, mode="area")[0, 0]
        clean = torch.where(mask, label.float(), torch.zeros_like(label, dtype=torch.float32))
        small = F.interpolate(clean[None, None], size=size, mode="area")[0, 0] / weight.clamp_min(1e-6)
        colours = None
        if image is not None:
            colours = F.interpolate(image.permute(2, 0, 1)[None].float(), size=size, mode="area")[0].permute(
                1, 2, 0
            )
        return View(
            small.cpu().double(), (weight > 0.99).cpu(), None if colours is None else colours.cpu().double()
        )

    def _match(self, key: View, view: View, motion: Tensor, reckoned: Reckoned | None) -> Match:
        return match_frames(key, view, motion, self.fov_x_degrees, self.options.colour, reckoned)

    def to_json(self) -> str:
        """All that `from_json` needs: the frames' scales and the reference frames on the small grid."""
        return json.dumps(
            {
                "format": FORMAT,
                "options": asdict(self.options),
                "fov_x_degrees": self.fov_x_degrees,
                "frames": [asdict(f) for f in self.frames],
                **_pack_track(self._track),
            }
        )

    @staticmethod
    def from_json(text: str) -> DepthStabilizer:
        """Raises ValueError for text that `to_json` did not write."""
        try:
            data = parse_json(text)
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                found = data.get("format") if isinstance(data, dict) else type(data).__name__
                raise ValueError(f"found format {found}, expected {FORMAT}")
            fov = float(data["fov_x_degrees"])
            if not 0 < fov < 180:
                raise ValueError(f"field of view is {fov} degrees, expected 0 to 180")
            out = DepthStabilizer(build_flat(TemporalOptions, data["options"], "options"), fov)
            if out.options.width < 8:
                raise ValueError(f"a grid {out.options.width} wide, expected at least 8")
            out.frames = [build_flat(FrameScale, f, f"frame {i}") for i, f in enumerate(data["frames"])]
            out._track = _unpack_track(data)
            if (out._track is None) != (not out.frames):
                raise ValueError("frames and key frames do not belong together")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"scale state: it is not what Stabilize Video saved ({error}); solve the clip again."
            ) from error
        return out


def _scaled(view: View, scale: FrameScale) -> View:
    return replace(view, scale=(scale.log_range / 2, scale.log_near + scale.log_range / 2))


def _roughly(key: View) -> float:
    """ln depth that counts as the same when networks waver: a part of what the key frame spreads over."""
    depths = key.log_depth[key.mask]
    return _ROUGHLY * 1.4826 * float((depths - depths.median()).abs().median()) if len(depths) else 0.0


def _pack_track(track: Track | None) -> dict:
    if track is None:
        return {"key": None, "last": None}
    out = {"key": _pack(track.key), "onward": track.onward.tolist()}
    for name, station in (("last", track.last), ("anchor", track.anchor)):
        out[name] = _pack(station.view)
        out[f"{name}_motion"] = station.motion.tolist()
        out[f"{name}_reckoned"] = [*station.reckoned.motion.tolist(), station.reckoned.doubt]
    return out


def _unpack_track(data: dict) -> Track | None:
    if data["key"] is None and data["last"] is None:
        return None
    key = _unpack(data["key"])
    if key is None or data["last"] is None:
        raise ValueError("one of two key frames")
    if "anchor" not in data:  # earlier versions knew the last frame only
        motion = _numbers(data["motion"], 6)
        last = Station(_unpack(data["last"]), motion, Reckoned(motion))
        return Track.begin(key) if data["last"] == data["key"] else Track(key, last, last)
    onward = _numbers(data["onward"], 6)
    last, anchor = (_unpack_station(data, name, key) for name in ("last", "anchor"))
    # what is one frame has to be one again: matching asks whether the anchor is the last one, or that the key frame
    return Track(key, last, last if data["anchor"] == data["last"] else anchor, onward)


def _unpack_station(data: dict, name: str, key: View) -> Station:
    view = key if data[name] == data["key"] else _unpack(data[name])
    *reckoned, doubt = _numbers(data[f"{name}_reckoned"], 7).tolist()
    if view is None or doubt < 0:
        raise ValueError(f"{name} frame with a doubt of {doubt}, expected a frame and at least 0")
    return Station(view, _numbers(data[f"{name}_motion"], 6), Reckoned(_numbers(reckoned, 6), doubt))


def _numbers(values: Sequence[float], count: int) -> Tensor:
    numbers = torch.tensor([float(x) for x in values], dtype=torch.float64)
    if numbers.shape != (count,) or not bool(numbers.isfinite().all()):
        raise ValueError(f"found {values}, expected {count} numbers")
    return numbers


def _pack(view: View) -> dict:
    def text(x: Tensor) -> str:
        return base64.b64encode(x.numpy().tobytes()).decode()

    return {
        "size": list(view.label.shape),
        "label": text(view.label.half()),
        "mask": text(view.mask.to(torch.uint8)),
        "image": None if view.image is None else text((view.image * 255).round().to(torch.uint8)),
        "scale": list(view.scale),
    }


def _unpack(data: dict | None) -> View | None:
    if data is None:
        return None
    size = tuple(int(n) for n in data["size"])
    scale = tuple(float(x) for x in data["scale"])
    if len(size) != 2 or min(size) < 1 or len(scale) != 2 or not all(map(math.isfinite, scale)):
        raise ValueError(f"a key frame of size {size} and scale {scale}")

    def tensor(text: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        stored = bytearray(base64.b64decode(text, validate=True))
        if len(stored) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"a key frame of {len(stored)} bytes, expected {shape}")
        values = torch.frombuffer(stored, dtype=dtype).reshape(shape)
        if not bool(values.isfinite().all()):
            raise ValueError("a key frame with numbers that are not finite")
        return values

    image = data["image"]
    return View(
        label=tensor(data["label"], torch.float16, size).double(),
        mask=tensor(data["mask"], torch.uint8, size).bool(),
        image=None if image is None else tensor(image, torch.uint8, (*size, 3)).double() / 255,
        scale=scale,
    )


def stabilize_clip(
    labels: Tensor,
    masks: Tensor | None = None,
    images: Tensor | None = None,
    state: DepthStabilizer | None = None,
    log_ranges: list[float] | None = None,
    two_pass: bool = False,
    on_frame: Callable[[int], None] | None = None,
) -> list[FrameScale]:
    """Scales of all frames of labels (T, H, W). With `two_pass` every frame is also solved against the key
    frame after it and the two answers are blended by nearness, so that no step shows where the key frame
    changes.

    The state, if given, is continued and holds the (streaming) result. on_frame is told how many are done.
    """
    state = state or DepthStabilizer()
    first = len(state.frames)
    views = []
    for t in range(len(labels)):
        mask = None if masks is None else masks[t]
        image = None if images is None else images[t]
        state.push(labels[t], mask, image, None if log_ranges is None else log_ranges[t])
        views.append(state._view(labels[t], mask, image) if two_pass else None)
        if on_frame is not None:
            on_frame(t + 1)
    scales = state.frames[first:]
    if not two_pass:
        return scales
    out = list(scales)
    keys = [t for t, s in enumerate(scales) if s.key]
    for before, after in itertools.pairwise(keys):
        if scales[after].cut:
            continue
        track = Track.begin(_scaled(views[after], scales[after]))
        for t in range(after - 1, before, -1):
            match = track.match(views[t], state._match)
            track.advance(_scaled(views[t], scales[t]), match)
            agree = match.inliers(max(state.options.tolerance, _roughly(track.key)))
            if agree * match.seen < state.options.cut_inliers:
                break
            share = (t - before) / (after - before)
            out[t] = replace(
                scales[t],
                log_range=(1 - share) * scales[t].log_range + share * 2 * match.gain,
                log_near=(1 - share) * scales[t].log_near + share * (match.offset - match.gain),
            )
    return out
