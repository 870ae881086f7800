"""An endless stream of training samples on the device: rendered, labelled and photographed batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fe2e_core.quantization import EPSILON
from train.online.effects import phone_pictures
from train.online.packing import Worlds, joined
from train.online.raycast import RayCaster
from train.online.source import PACKET, WorldSource

Size = tuple[int, int]

_MIN_VALID, _NEAREST, _MIN_RANGE = 0.4, 0.05, 0.02
"""Share of valid pixels, metres, and ln(far / near): scenes below are not taught (`train.scenes` draws them again)."""
_HILLS = 1 / 8
"""Share of a batch that may have hills; twice what is drawn."""


@dataclass(frozen=True)
class Samples:
    """B samples on the device: `image` (B,3,H,W) in [0,1] as photographed; `label` (B,H,W), Eq. 7's label in BF16 clipped
    to [-1,1], 1 where not valid; `normal` (B,3,H,W) unit, network axes; `valid` (B,H,W) bool; `log_range` (B,), what the
    ends of the label are apart in ln(depth); `depth` (B,H,W) metres. `usable` (B,) bool: scenes to learn from.
    """

    image: Tensor
    label: Tensor
    normal: Tensor
    valid: Tensor
    log_range: Tensor
    depth: Tensor
    usable: Tensor

    def split(self, count: int) -> list[Samples]:
        """In parts of `count` samples."""
        return [Samples(*part) for part in zip(*(value.split(count) for value in vars(self).values()), strict=True)]


def label_batch(depth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(labels (B,H,W), log ranges (B,)): `train.pool.label_scene` for a batch, percentiles by sorting."""
    value = torch.log(depth + EPSILON)
    ordered = torch.where(valid, value, torch.inf).flatten(1).sort(1).values
    last = (valid.flatten(1).sum(1) - 1).clamp_min(0)
    ends = []
    for share in (0.02, 0.98):
        place = share * last.double()
        low = place.floor()
        a, b = (ordered.gather(1, p.long()[:, None])[:, 0] for p in (low, place.ceil()))
        ends.append(a + (place - low).float() * (b - a))
    low, span = ends[0], (ends[1] - ends[0]).clamp_min(1e-3)
    low = torch.nan_to_num(low, posinf=0.0)
    span = torch.nan_to_num(span, nan=1.0, posinf=1.0)
    label = ((value - low[:, None, None]) / span[:, None, None] - 0.5) * 2
    label = label.to(torch.bfloat16).float().clamp(-1, 1)
    return torch.where(valid, label, 1.0), span


def turned(worlds: Worlds, yaw: Tensor) -> Worlds:
    """The same worlds with the camera turned about the vertical by `yaw` (B,) radians."""
    c, s = yaw.cos()[:, None], yaw.sin()[:, None]
    rows = worlds.camera.view(-1, 3, 3)
    first, last = c * rows[:, 0] + s * rows[:, 2], -s * rows[:, 0] + c * rows[:, 2]
    return replace(worlds, camera=torch.stack((first, rows[:, 1], last), 1).flatten(1))


class SceneStream:
    """`next_batch` renders the next `batch` samples. Every world is seen `views` times, from the same place in other
    directions; a `window_share` of the pictures are crops of larger ones, zoomed up to four times, as tiles are."""

    def __init__(self, source: WorldSource, device: torch.device, batch: int, views: int, window_share: float, seed: int,
                 compiled: bool):
        if batch % PACKET or batch < PACKET:
            raise ValueError(f"[stream] batch is {batch}; expected a multiple of {PACKET}")
        self.source, self.device, self.batch, self.views = source, device, batch, max(1, views)
        self.window_share, self.seed = window_share, seed
        self.cast = RayCaster(device, compiled, max(1, round(batch * _HILLS)))
        self._worlds: Worlds | None = None
        self._left = 0

    def next_batch(self, number: int, size: Size) -> Samples:
        """`number` seeds what is drawn here: directions, windows, mirroring and what the camera does."""
        rng = np.random.default_rng([self.seed, number])
        if self._left == 0 or self._worlds is None:
            packets = [next(self.source) for _ in range(self.batch // PACKET)]
            self._worlds, self._left = joined(packets).to(self.device), self.views
        first = self._left == self.views
        self._left -= 1
        worlds = self._worlds if first else turned(self._worlds, self._draw(rng, -0.5, 0.5))
        zoom = torch.exp(self._draw(rng, 0.0, float(np.log(4))))
        zoom = torch.where(self._draw(rng, 0, 1) < self.window_share, zoom, 1.0)
        window = torch.stack((zoom, self._draw(rng, -1, 1), self._draw(rng, -1, 1)), 1)
        found = self.cast(worlds, *size, window)
        image, depth, normal, valid = found.image, found.depth, found.normal, found.valid
        flip = (self._draw(rng, 0, 1) < 0.5)[:, None, None]
        image, normal = (torch.where(flip[:, None], v.flip(-1), v) for v in (image, normal))
        depth, valid = torch.where(flip, depth.flip(-1), depth), torch.where(flip, valid.flip(-1), valid)
        normal = torch.where(flip[:, None], normal * normal.new_tensor([-1, 1, 1])[:, None, None], normal)
        label, span = label_batch(depth, valid)
        nearest = torch.where(valid, depth, torch.inf).flatten(1).amin(1)
        usable = (valid.float().mean((1, 2)) >= _MIN_VALID) & (nearest > _NEAREST) & (span > _MIN_RANGE)
        return Samples(
            image=phone_pictures(image, depth, valid, rng),
            label=label,
            normal=-normal,  # x left, y up, z toward the camera: `geometry.normal_to_network`
            valid=valid,
            log_range=span,
            depth=depth,
            usable=usable,
        )

    def _draw(self, rng: np.random.Generator, low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, self.batch).astype(np.float32)).to(self.device)
