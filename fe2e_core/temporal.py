"""Video: one scale for all frames of a shot, though the network normalises every frame by itself (Eq. 7).

Each frame's ln depth is a * label + b with unknown a and b. They are solved against a key frame of the same
shot, together with the camera's rigid motion: the key frame's points are moved, projected into the new
frame, and their depth is compared with the label found there. What does not follow one rigid motion (things
that move, what is hidden or comes into view, what the pictures show in another colour) loses its weight.
Without the motion in the equations a camera that walks forward would pass for a scene that shrinks.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import intrinsics_from_fov, pixel_rays
from .strict_json import build_flat, parse_json

FORMAT = 1
_MOST_POINTS = 4000


@dataclass(frozen=True)
class TemporalOptions:
    """width: of the grid frames are compared on. first_log_range: of a shot's first frame, when nothing
    better is known. key_inliers: a new key frame once fewer points of the old one are met again.
    cut_inliers: a scene cut below this share. tolerance: ln depth that counts as the same. colour:
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
    became a key frame. inliers: share of comparable points that agree; residual: their median |ln error|.
    """

    log_range: float
    log_near: float
    cut: bool
    key: bool
    inliers: float
    residual: float


@dataclass(frozen=True)
class _View:
    """A frame on the small grid: label, mask (h, w), ln depth with its scale applied, colours (h, w, 3) or
    None.
    """

    label: Tensor
    mask: Tensor
    image: Tensor | None
    scale: tuple[float, float] = (1.0, 0.0)

    @property
    def log_depth(self) -> Tensor:
        return self.scale[0] * self.label + self.scale[1]


@dataclass(frozen=True)
class _Match:
    gain: float
    offset: float
    motion: Tensor
    inliers: float
    residual: float
    seen: float


@dataclass
class DepthStabilizer:
    """Streaming solver: `push` frames in order. Its state goes to JSON and back, for later shots and
    re-renders.
    """

    options: TemporalOptions = field(default_factory=TemporalOptions)
    fov_x_degrees: float = 60.0
    frames: list[FrameScale] = field(default_factory=list)
    _key: _View | None = None
    _last: _View | None = None
    _motion: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))

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
        if self._key is None:
            return self._begin(view, start, cut=bool(self.frames))
        match = self._match(self._key, view, self._motion)
        if match.inliers * match.seen < self.options.key_inliers and self._last is not self._key:
            # Too far from the key frame: the last frame takes its place.
            self._key, self._motion = self._last, torch.zeros(6, dtype=torch.float64)
            self.frames[-1] = replace(self.frames[-1], key=True)
            match = self._match(self._key, view, self._motion)
        if match.inliers < self.options.cut_inliers or match.seen < 0.2:
            return self._begin(view, start, cut=True)
        self._motion = match.motion
        self._last = replace(view, scale=(match.gain, match.offset))
        return self._record(match.gain, match.offset, False, False, match.inliers, match.residual)

    def _begin(self, view: _View, gain: float, cut: bool) -> FrameScale:
        self._key = self._last = replace(view, scale=(gain, gain))  # log_near 0: near plane one unit away
        self._motion = torch.zeros(6, dtype=torch.float64)
        return self._record(gain, gain, cut, True, 1.0, 0.0)

    def _record(
        self, gain: float, offset: float, cut: bool, key: bool, inliers: float, residual: float
    ) -> FrameScale:
        self.frames.append(FrameScale(2 * gain, offset - gain, cut, key, inliers, residual))
        return self.frames[-1]

    def _view(self, label: Tensor, mask: Tensor | None, image: Tensor | None) -> _View:
        height, width = label.shape
        if mask is None:
            mask = torch.ones_like(label, dtype=torch.bool)
        mask = mask & (label.abs() != 1)  # cut off by the network, so without a depth of their own
        columns = min(self.options.width, width)
        size = (max(8, round(columns * height / width)), columns)
        weight = F.interpolate(mask[None, None].float(), size=size, mode="area")[0, 0]
        clean = torch.where(mask, label.float(), torch.zeros_like(label, dtype=torch.float32))
        small = F.interpolate(clean[None, None], size=size, mode="area")[0, 0] / weight.clamp_min(1e-6)
        colours = None
        if image is not None:
            colours = F.interpolate(image.permute(2, 0, 1)[None].float(), size=size, mode="area")[0].permute(
                1, 2, 0
            )
        return _View(
            small.cpu().double(), (weight > 0.99).cpu(), None if colours is None else colours.cpu().double()
        )

    def _match(self, key: _View, view: _View, motion: Tensor) -> _Match:
        return match_frames(key, view, motion, self.fov_x_degrees, self.options)

    def to_json(self) -> str:
        """All that `from_json` needs: the frames' scales and the reference frames on the small grid."""
        return json.dumps(
            {
                "format": FORMAT,
                "options": asdict(self.options),
                "fov_x_degrees": self.fov_x_degrees,
                "frames": [asdict(f) for f in self.frames],
                "key": _pack(self._key),
                "last": _pack(self._last),
                "motion": self._motion.tolist(),
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
            out._key, out._last = _unpack(data["key"]), _unpack(data["last"])
            if len({out._key is None, out._last is None, not out.frames}) > 1:
                raise ValueError("frames and key frames do not belong together")
            out._motion = torch.tensor([float(x) for x in data["motion"]], dtype=torch.float64)
            if out._motion.shape != (6,) or not bool(out._motion.isfinite().all()):
                raise ValueError(f"motion is {data['motion']}, expected six numbers")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"scale state: it is not what Stabilize Video saved ({error}); solve the clip again."
            ) from error
        return out


def _pack(view: _View | None) -> dict | None:
    if view is None:
        return None

    def text(x: Tensor) -> str:
        return base64.b64encode(x.numpy().tobytes()).decode()

    return {
        "size": list(view.label.shape),
        "label": text(view.label.half()),
        "mask": text(view.mask.to(torch.uint8)),
        "image": None if view.image is None else text((view.image * 255).round().to(torch.uint8)),
        "scale": list(view.scale),
    }


def _unpack(data: dict | None) -> _View | None:
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
    return _View(
        label=tensor(data["label"], torch.float16, size).double(),
        mask=tensor(data["mask"], torch.uint8, size).bool(),
        image=None if image is None else tensor(image, torch.uint8, (*size, 3)).double() / 255,
        scale=scale,
    )


def _rotation(w: Tensor) -> Tensor:
    """(3, 3) rotation of a rotation vector (3,)."""
    x, y, z = w.tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def match_frames(
    key: _View, view: _View, motion: Tensor, fov_x_degrees: float, options: TemporalOptions
) -> _Match:
    """Gain and offset of `view`'s ln depth, and the camera's motion from `key` (6,), by robust
    Gauss-Newton.
    """
    height, width = key.label.shape
    if view.label.shape != key.label.shape:
        return _Match(1.0, 0.0, motion, 0.0, math.inf, 0.0)
    k = intrinsics_from_fov(fov_x_degrees, height, width).double()
    # a few thousand points fix eight numbers as well as all do
    use = torch.nonzero(key.mask.flatten())[:, 0]
    use = use[:: max(1, len(use) // _MOST_POINTS)]
    if len(use) < 50:
        return _Match(1.0, 0.0, motion, 0.0, math.inf, 0.0)
    rays = pixel_rays(height, width, k).reshape(-1, 3)[use]
    reference = key.log_depth.flatten()[use]
    middle = float(reference.median())
    points = (
        rays * torch.exp(reference - middle)[:, None]
    )  # in units of the median depth, so motions are of order one
    colours = None if key.image is None or view.image is None else key.image.reshape(-1, 3)[use]
    label = view.label
    # slopes per unit of x and y of the ray, from central differences
    along_x = torch.gradient(label, dim=1)[0] * (width * k[0, 0])
    along_y = torch.gradient(label, dim=0)[0] * (height * k[1, 1])
    layers = [label, along_x, along_y, view.mask.double()]
    if colours is not None:
        layers.extend(view.image.unbind(-1))
    stack = torch.stack(layers)[None]
    # Start with the spread and level of the reference at the same pixels.
    both = key.mask & view.mask
    motion = motion.clone()
    gain, offset = _spread_start(key.log_depth[both] - middle, label[both], key.scale[0])
    best = None
    scale = None
    for step in range(14):
        moved = points @ _rotation(motion[3:]).T + motion[:3]
        z = moved[:, 2].clamp_min(1e-3)
        x, y = moved[:, 0] / z, moved[:, 1] / z
        u, v = x * k[0, 0] + k[0, 2], y * k[1, 1] + k[1, 2]
        grid = torch.stack([2 * u - 1, 2 * v - 1], -1)[None, None]
        found = F.grid_sample(stack, grid, mode="bilinear", align_corners=False)[0, :, 0]
        seen = (found[3] > 0.99) & (u > 0) & (u < 1) & (v > 0) & (v < 1) & (moved[:, 2] > 1e-3)
        if int(seen.sum()) < 50:
            return _Match(gain, offset + middle, motion, 0.0, math.inf, 0.0)
        miss = gain * found[0] + offset - torch.log(z)
        spread = 1.4826 * float(miss[seen].abs().median())
        scale = max(spread, 0.004) if step else max(spread, 0.1)
        weight = seen / (1 + (miss / (2 * scale)).square()).square()
        if colours is not None:
            change = (found[4:].T - colours).abs().amax(-1)
            weight = weight / (1 + (change / options.colour).pow(4))
        agree = seen & (miss.abs() < max(options.tolerance, 0.0))
        best = _Match(
            gain,
            offset + middle,
            motion.clone(),
            float(agree.sum() / seen.sum()),
            float(miss[seen].abs().median()),
            float(seen.double().mean()),
        )
        if step == 13:
            break
        q, gx, gy = 1 / z, gain * found[1], gain * found[2]
        jac = torch.stack(
            [
                found[0],
                torch.ones_like(q),
                gx * q,
                gy * q,
                -gx * x * q - gy * y * q - q,
                -gx * x * y - gy * (1 + y * y) - y,
                gx * (1 + x * x) + gy * x * y + x,
                -gx * y + gy * x,
            ],
            -1,
        )
        matrix = jac.T @ (weight[:, None] * jac)
        # Motions are small, and where a scene cannot tell a motion from a change of scale it is the scale
        # that holds.
        prior = 1e-4 * float(weight.sum()) * torch.tensor([0.01, 0.01, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
        delta = torch.linalg.solve(matrix + torch.diag(prior), -(jac.T @ (weight * miss)))
        delta[2:] = delta[2:].clamp(-0.1, 0.1)
        gain = max(gain + float(delta[0].clamp(-0.5 * gain, gain)), 1e-3)
        offset += float(delta[1])
        motion = motion + delta[2:]
        if step > 3 and float(delta.abs().max()) < 1e-6:
            break
    return best


def _spread_start(reference: Tensor, label: Tensor, usual: float) -> tuple[float, float]:
    """Gain and offset that map labels to the reference, by the least median over pairs of pixels."""
    if len(label) < 50:
        return usual, 0.0
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randint(0, len(label), (400,), generator=generator) for _ in range(2))
    apart = (label[one] - label[two]).abs() > 0.1
    one, two = one[apart], two[apart]
    if not len(one):
        return usual, float((reference - usual * label).median())
    gains = (reference[one] - reference[two]) / (label[one] - label[two])
    offsets = reference[one] - gains * label[one]
    sample = slice(None, None, max(1, len(label) // 1500))
    miss = (gains[:, None] * label[sample] + offsets[:, None] - reference[sample]).abs()
    miss = torch.where(gains > 0, miss.median(1).values, torch.full_like(gains, math.inf))
    index = int(miss.argmin())
    if not math.isfinite(float(miss[index])):
        return usual, float((reference - usual * label).median())
    return float(gains[index]), float(offsets[index])


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
        scale = scales[after]
        key = replace(views[after], scale=(scale.log_range / 2, scale.log_near + scale.log_range / 2))
        motion = torch.zeros(6, dtype=torch.float64)
        for t in range(after - 1, before, -1):
            match = match_frames(key, views[t], motion, state.fov_x_degrees, state.options)
            if match.inliers * match.seen < state.options.cut_inliers:
                break
            motion = match.motion
            share = (t - before) / (after - before)
            out[t] = replace(
                scales[t],
                log_range=(1 - share) * scales[t].log_range + share * 2 * match.gain,
                log_near=(1 - share) * scales[t].log_near + share * (match.offset - match.gain),
            )
    return out
