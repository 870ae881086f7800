"""Two frames of a shot: gain and offset between their depths and the camera's motion, by robust Gauss-Newton.

The key frame's points are moved rigidly, projected into the other frame, and their depth is compared with the
label found there. Where there are pictures, places are also followed in them (flow.py): the motion has to take
points where the pictures show them, and a point that the pictures show elsewhere moves by itself. What follows
neither (things that move, what is hidden or comes into view) loses its weight. Without the motion in the
equations a camera that walks forward would pass for a scene that shrinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow import follow, grey, shifted_guess
from .geometry import intrinsics_from_fov, pixel_rays
from .median import median_of_nine

_MOST_POINTS = 4000  # they fix eight numbers as well as all do
_FEWEST_POINTS = 50
_STEPS = 14
_ALIKE = 0.7  # correlation of two windows that show the same place
_FEWEST_TEXTURED = 0.05  # of the picture, for its evidence to count
_FLOW_ERROR = 0.7  # pixels of the small grid that a place can be followed to
_FOLLOWED = 0.35  # share of textured places that have to be met again; less comes about by chance
_AS_ALIKE = 0.02  # share of textured places by which a second look may be worse than the first
_TOGETHER = 100  # points that err together, so that many points are not taken for much evidence


@dataclass(frozen=True)
class View:
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
class Match:
    """ln depth of the other frame = gain * label + offset; motion (6,): translation in units of the key
    frame's median depth, rotation vector. seen: share of the key frame's points that lie in the other
    picture; misses (n,): |ln error| of these. alike: share of the textured places that show the same in both
    pictures, nan without pictures or texture. doubt: standard deviation of the motion's numbers by how closely it
    follows the pictures, 1 where they have no say.
    """

    gain: float
    offset: float
    motion: Tensor
    seen: float
    misses: Tensor
    alike: float
    doubt: float = 1.0

    @property
    def residual(self) -> float:
        """Median |ln error|, infinite if nothing was seen."""
        return float(self.misses.median()) if len(self.misses) else math.inf

    def inliers(self, tolerance: float) -> float:
        """Share of the points seen whose ln depth agrees within a tolerance."""
        return float((self.misses < tolerance).double().mean()) if len(self.misses) else 0.0

    def better_than(self, other: Match) -> bool:
        """Whether this match is worth a change of the key frame: more of the picture, or a closer fit. A
        network that wavers fits no frame closely, and a change would only add up its errors.
        """
        if not math.isnan(self.alike + other.alike) and self.alike > other.alike + 0.2:
            return True
        return self.seen > other.seen + 0.3 or self.residual < 0.7 * other.residual


@dataclass(frozen=True)
class Reckoned:
    """A motion (6,) known from elsewhere, and the standard deviation of its numbers; from 1 on it is a guess only."""

    motion: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    doubt: float = 1.0


@dataclass(frozen=True)
class _Places:
    """Where points (n,) of the key frame are in the other picture by flow: at (n, 2) in pixels from its
    corner, sure (n,) bool.
    """

    at: Tensor
    sure: Tensor
    alike: float


def match_frames(
    key: View,
    view: View,
    motion: Tensor,
    fov_x_degrees: float,
    colour: float,
    reckoned: Reckoned | None = None,
) -> Match:
    """Match `view` with `key`, beginning at a motion (6,), and at a `reckoned` one too if there is one: the closer fit
    of the two is taken, and what these frames leave open is as reckoned. colour: difference in [0, 1] that tells two
    things apart.
    """
    nothing = Match(1.0, 0.0, motion, 0.0, torch.zeros(0, dtype=torch.float64), math.nan)
    use = torch.nonzero(key.mask.flatten())[:, 0]
    use = use[:: max(1, len(use) // _MOST_POINTS)]
    if view.label.shape != key.label.shape or len(use) < _FEWEST_POINTS:
        return nothing
    height, width = key.label.shape
    solver = _Solver(
        key, view, use, intrinsics_from_fov(fov_x_degrees, height, width).double(), colour, reckoned
    )
    places = solver.follow(motion)
    found = replace(nothing, alike=math.nan if places is None else places.alike)
    if found.alike < _FOLLOWED:
        places = None
    both = key.mask & view.mask
    gain, offset = spread_start(key.log_depth[both] - solver.middle, view.label[both], key.scale[0])
    first = _fit(solver, places, gain, offset, motion, found)
    if places is not None:
        # where the pictures repeat themselves, what is followed depends on where one begins
        again = solver.follow(first.motion)
        if again is not None and again.alike >= max(places.alike - _AS_ALIKE, _FOLLOWED):
            places, found = again, replace(found, alike=again.alike)
            first = _fit(solver, places, gain, offset, first.motion, found)
    if reckoned is None or not bool((reckoned.motion - motion).abs().max() > 1e-3):
        return first
    second = _fit(solver, places, gain, offset, reckoned.motion, found)
    return second if second.residual < first.residual and second.seen > 0.8 * first.seen else first


def _fit(
    solver: _Solver, places: _Places | None, gain: float, offset: float, motion: Tensor, found: Match
) -> Match:
    """Gauss-Newton from one guess; `found` as it is where too few points are seen."""
    # label = a ln z + b: in the label's units a camera that backs off, which flattens ln z, gains nothing
    line = torch.tensor([1 / gain, -offset / gain], dtype=torch.float64)
    for step in range(_STEPS):
        state = solver.look(line, motion, places, step)
        if state is None:
            return found
        delta = state.step()
        line = torch.stack(
            [(line[0] + delta[0].clamp(-0.5 * line[0], line[0])).clamp_min(1e-3), line[1] + delta[1]]
        )
        motion = motion + delta[2:]
        if step > 3 and float(delta.abs().max()) < 1e-6:
            break
    state = solver.look(line, motion, places, _STEPS)
    if state is None:
        return found
    gain, offset = state.symmetric(1 / float(line[0]), -float(line[1]) / float(line[0]))
    misses = (gain * state.label + offset - state.log_z)[state.seen].abs()
    seen = float(state.seen.double().mean())
    return replace(
        found,
        gain=gain,
        offset=offset + solver.middle,
        motion=motion,
        seen=seen,
        misses=misses,
        doubt=state.doubt,
    )


@dataclass(frozen=True)
class _State:
    """One look at all points: label found and ln depth expected (n,), whether seen, weights of the depth
    equations, the normal equations of the line's two numbers and the motion, and the `doubt` of a Match.
    """

    label: Tensor
    log_z: Tensor
    seen: Tensor
    weight: Tensor
    matrix: Tensor
    gradient: Tensor
    doubt: float

    def step(self) -> Tensor:
        """(8,) change of the line and the motion."""
        # Motions are small, and where a scene cannot tell a motion from a change of scale it is the scale
        # that holds.
        prior = 1e-4 * float(self.weight.sum()) * self.matrix.new_tensor([0.01, 0.01, 1, 1, 1, 1, 1, 1])
        delta = torch.linalg.solve(self.matrix + torch.diag(prior), self.gradient)
        delta[2:] = delta[2:].clamp(-0.1, 0.1)
        return delta

    def symmetric(self, gain: float, offset: float) -> tuple[float, float]:
        """Gain and offset that treat both frames alike. Least squares takes the key frame for exact and the
        label for noisy or the other way round, and would shrink the depth range a little with every frame.
        """
        share = self.weight / self.weight.sum().clamp_min(1e-30)
        x, y = (v - (share * v).sum() for v in (self.label, self.log_z))
        xx, yy = float((share * x * x).sum()), float((share * y * y).sum())
        if not (xx > 1e-8 and yy > 1e-8 and float((share * x * y).sum()) > 0):
            return gain, offset
        fair = math.sqrt(yy / xx)
        return fair, float((share * (self.log_z - fair * self.label)).sum())


class _Solver:
    """The points of a key frame, looked up in another frame."""

    def __init__(
        self, key: View, view: View, use: Tensor, k: Tensor, colour: float, reckoned: Reckoned | None
    ):
        height, width = key.label.shape
        self.key, self.view, self.use, self.k, self.colour = key, view, use, k, colour
        self.reckoned = reckoned
        self.size = torch.tensor([width, height], dtype=torch.float64)
        # noise of single pixels would pass for slopes, and pull points to where interpolation averages it out
        reference = median_of_nine(key.log_depth[None], key.mask[None])[0].flatten()
        label = median_of_nine(view.label[None], view.mask[None])[0]
        self.middle = float(reference[use].median())
        # in units of the median depth, so motions are of order one
        every = pixel_rays(height, width, k).reshape(-1, 3) * torch.exp(reference - self.middle)[:, None]
        self.every, self.points = every, every[use]
        pictures = key.image is not None and view.image is not None
        self.colours = key.image.reshape(-1, 3)[use] if pictures else None
        # slopes per unit of x and y of the ray, from central differences
        along_x = torch.gradient(label, dim=1)[0] * (width * k[0, 0])
        along_y = torch.gradient(label, dim=0)[0] * (height * k[1, 1])
        layers = [label, along_x, along_y, view.mask.double()]
        self.stack = torch.stack([*layers, *(view.image.unbind(-1) if pictures else ())])[None]

    def project(self, points: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Points (n, 3) after a motion: (x, y, 1) of their rays times depth, and places (n, 2) in pixels
        from the corner.
        """
        moved = points @ _rotation(motion[3:]).T + motion[:3]
        ray = moved[:, :2] / moved[:, 2:].clamp_min(1e-3)
        focal = torch.stack([self.k[0, 0], self.k[1, 1]])
        return moved, (ray * focal + self.k[:2, 2]) * self.size

    def follow(self, motion: Tensor) -> _Places | None:
        """Where the pictures show the points; None without pictures or texture."""
        if self.colours is None:
            return None
        height, width = self.key.label.shape
        one, two = grey(self.key.image), grey(self.view.image)
        _, at = self.project(self.every, motion)
        known = self.key.mask.flatten()[:, None]
        still = torch.stack(
            torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1
        ).double()
        guess = torch.where(known, at - 0.5, still.reshape(-1, 2)).reshape(height, width, 2)
        best, likeness, alike = None, None, -1.0
        for start in (guess, shifted_guess(one, two)):
            found, like = follow(one, two, start)
            textured = torch.isfinite(like)
            if float(textured.double().mean()) < _FEWEST_TEXTURED:
                continue
            share = float((like[textured] > _ALIKE).double().mean())
            if share > alike:
                best, likeness, alike = found, like, share
        if best is None:
            return None
        at = best.reshape(-1, 2)[self.use] + 0.5
        return _Places(at, likeness.flatten()[self.use] > _ALIKE, alike)

    def look(self, line: Tensor, motion: Tensor, places: _Places | None, step: int) -> _State | None:
        """All equations at one guess; None if too few points are seen."""
        slope = float(line[0])
        moved, at = self.project(self.points, motion)
        found = F.grid_sample(
            self.stack, 2 * (at / self.size)[None, None] - 1, mode="bilinear", align_corners=False
        )[0, :, 0]
        seen = (found[3] > 0.99) & ((at > 0) & (at < self.size)).all(-1) & (moved[:, 2] > 1e-3)
        if int(seen.sum()) < _FEWEST_POINTS:
            return None
        z = moved[:, 2].clamp_min(1e-3)
        x, y = moved[:, 0] / z, moved[:, 1] / z
        log_z = torch.log(z)
        miss = found[0] - slope * log_z - line[1]
        spread = 1.4826 * float(miss[seen].abs().median())
        scale = max(spread, (0.004 if step else 0.1) * slope)
        weight = seen / (1 + (miss / (2 * scale)).square()).square()
        if self.colours is not None:
            change = (found[4:].T - self.colours).abs().amax(-1)
            weight = weight / (1 + (change / self.colour).pow(4))
        q, gx, gy, zero = 1 / z, found[1], found[2], torch.zeros_like(z)
        # derivatives of x, y and ln z by translation and rotation
        d_x = torch.stack([q, zero, -x * q, -x * y, 1 + x * x, -y], -1)
        d_y = torch.stack([zero, q, -y * q, -(1 + y * y), x * y, x], -1)
        d_z = torch.stack([zero, zero, q, y, -x, zero], -1)
        jac = torch.cat(
            [
                -torch.stack([log_z, torch.ones_like(z)], -1),
                gx[:, None] * d_x + gy[:, None] * d_y - slope * d_z,
            ],
            -1,
        )
        flow_terms, doubt = None, 1.0
        if places is not None and int((places.sure & seen).sum()) >= _FEWEST_POINTS:
            off = at - places.at
            far = off.norm(dim=-1)
            sure = places.sure & seen
            error = max(_FLOW_ERROR, 1.4826 * float(far[sure].median()))
            # seen elsewhere: it moves by itself, whatever its depth and colour
            weight = weight / (1 + sure * (far / (3 * error)).pow(4))
            trust = sure / (1 + (far / (2 * error)).square()).square() * (scale / error) ** 2
            flow_terms, doubt = (off, trust), error / float(self.k[0, 0] * self.size[0])
        matrix = jac.T @ (weight[:, None] * jac)
        gradient = -(jac.T @ (weight * miss))
        if flow_terms is not None:
            off, trust = flow_terms
            for axis, rows in enumerate((d_x, d_y)):
                rows = rows * (self.k[axis, axis] * self.size[axis])
                matrix[2:, 2:] += rows.T @ (trust[:, None] * rows)
                gradient[2:] -= rows.T @ (trust * off[:, axis])
        if self.reckoned is not None and self.reckoned.doubt < 1:
            # Before three planes that meet in a point, depth cannot tell a step towards it from a change of scale.
            pull = _TOGETHER * (scale / self.reckoned.doubt) ** 2
            matrix[2:, 2:] += pull * torch.eye(6, dtype=matrix.dtype)
            gradient[2:] += pull * (self.reckoned.motion - motion)
        return _State(found[0], log_z, seen, weight, matrix, gradient, doubt)


def chain(first: View, motion: Tensor, second: View, onward: Tensor) -> Tensor:
    """Motion (6,) from `first` to a third view: `motion` takes first to second, `onward` second to the third, each
    in units of the median depth of the view it starts from.
    """
    turn = _rotation(onward[3:])
    near, far = (torch.exp(v.log_depth[v.mask].median()) for v in (first, second))
    return torch.cat([turn @ motion[:3] + onward[:3] * far / near, _vector(turn @ _rotation(motion[3:]))])


def _vector(rotation: Tensor) -> Tensor:
    """Rotation vector (3,) of a rotation (3, 3) by less than half a turn."""
    r = rotation
    axis = torch.stack([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]) / 2
    sine = float(axis.norm())
    angle = math.atan2(sine, (float(r.trace()) - 1) / 2)
    return axis * (angle / sine if sine > 1e-9 else 1.0)


def _rotation(w: Tensor) -> Tensor:
    """(3, 3) rotation of a rotation vector (3,)."""
    x, y, z = w.tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def spread_start(reference: Tensor, label: Tensor, usual: float) -> tuple[float, float]:
    """Gain and offset that map labels (n,) to the reference (n,), by the least median over pairs of pixels;
    `usual` is the gain where they tell none.
    """
    if len(label) < _FEWEST_POINTS:
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
