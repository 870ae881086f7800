"""How good the network is now, on a fixed set: the field's metrics, and a sheet of pictures to look at.

Nothing here touches the state of the training: the same run with and without validation has the same weights,
bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from fe2e_core.geometry import normal_from_network
from fe2e_core.metrics import LOG_CLIP, abs_rel, align_linear, align_log, angular_error_deg, delta
from fe2e_core.quantization import inverse, transform
from train.backend import decode
from train.bases import Base
from train.data.fixed_set import FixedSet
from train.data.frame import Frame
from train.data.procedural import Procedural, ProceduralConfig
from train.data.sheet import depth_colours, normal_colours, sheet_row
from train.encoding import encode_pixels
from train.flow import sample
from train.recipe import METRICS, Objective, ValidationConfig

_NOISE = 78
_ROW_WIDTH = 240


@dataclass(frozen=True)
class Scores:
    """Means over the pictures of the set: AbsRel and delta1 of the depth, aligned in the space of its labels;
    the mean angle in degrees, NaN where no normals are predicted."""

    abs_rel: float
    delta1: float
    angle: float

    def as_row(self) -> dict[str, float]:
        """By name, without what is not measured."""
        return {key: value for key, value in asdict(self).items() if not math.isnan(value)}

    def better_than(self, other: Scores | None, metric: str) -> bool:
        """Whether `metric` (of METRICS) is better; NaN never is, and anything else is better than nothing."""
        mine = getattr(self, metric) * METRICS[metric]
        if other is None or math.isnan(getattr(other, metric)):
            return not math.isnan(mine)
        return mine < getattr(other, metric) * METRICS[metric]


def aligned_depth(label: Tensor, frame: Frame, scheme: str) -> Tensor:
    """(H,W) predicted label in [-1,1] -> depth in metres, fitted to the frame's by a line in label space.

    For "log" that is FE2E's alignment; the others end where it ends, at 148 m."""
    label = label.double()
    if scheme == "log":
        try:
            return align_log(label, frame.depth, frame.valid).depth
        except ValueError:  # all at the near end: as good as a constant
            return align_log(torch.zeros_like(label), frame.depth, frame.valid).depth
    target = torch.where(frame.valid, frame.depth.double(), 1.0)
    fitted = align_linear((label + 1) / 2, transform(target, scheme), frame.valid).depth
    if scheme == "inverse":
        fitted = fitted.clamp_min(math.exp(-LOG_CLIP))
    return inverse(fitted, scheme).clamp(max=math.exp(LOG_CLIP))


def score(depth: Tensor, normal: Tensor | None, frame: Frame) -> Scores:
    """Scores of one picture: aligned depth (H,W) and OpenCV normals (H,W,3), against the frame."""
    angle = math.nan
    if normal is not None and bool(frame.normal_valid.any()):
        angle = float(angular_error_deg(normal, frame.normal)[frame.normal_valid].mean())
    return Scores(
        abs_rel(depth, frame.depth, frame.valid), delta(depth, frame.depth, frame.valid), angle
    )


class Validation:
    """The fixed set of a run, spread over its processes. size: of the procedural scenes, where no dataset is
    given. Raises what the datasets raise when they are opened."""

    def __init__(
        self,
        config: ValidationConfig,
        objective: Objective,
        seed: int,
        size: tuple[int, int],
        accelerator: Accelerator,
    ):
        self.config = config
        self._objective = objective
        self._seed = seed
        self._accelerator = accelerator
        scenes = Procedural(ProceduralConfig(*size, held_out=True))
        self._set = FixedSet([s.open() for s in config.sources] or [scenes], config.pictures)

    @torch.no_grad()
    def __call__(self, base: Base, model: Callable) -> tuple[Scores, list[Tensor]]:
        """Scores of the whole set, the same on every process, and rows of this process's sheet: picture,
        predicted depth, true depth, predicted normals, true normals.

        model: the base's transformer, or what wraps it."""
        ranks, rank = self._accelerator.num_processes, self._accelerator.process_index
        count = len(self._set)
        # all run equally often: a wrapped model may talk to the other processes in every pass
        places = [(rank + ranks * i) % count for i in range(math.ceil(count / ranks))]
        training = base.transformer.training
        base.transformer.eval()
        try:
            measured, rows = [], []
            for number, place in enumerate(places):
                frame = self._set[place]
                depth, normal = self._predict(base, model, frame, place)
                measured.append(list(asdict(score(depth, normal, frame)).values()))
                if number < self.config.drawn:
                    rows.append(_row(frame, depth, normal))
        finally:
            base.transformer.train(training)
        table = torch.tensor(measured, dtype=torch.float64)
        if ranks > 1:
            table = self._accelerator.gather(table.to(self._accelerator.device)).cpu()
            table = table.view(ranks, -1, table.shape[1]).transpose(0, 1).flatten(0, 1)[:count]
        return Scores(*table.nanmean(dim=0).tolist()), rows

    def _predict(
        self, base: Base, model: Callable, frame: Frame, place: int
    ) -> tuple[Tensor, Tensor | None]:
        """Aligned depth (H,W) and OpenCV normals (H,W,3) of a frame."""
        device = self._accelerator.device
        image = encode_pixels(base.autoencoder, frame.image.permute(2, 0, 1) * 2 - 1, device)[None]
        seeds = [(self._seed, _NOISE, place)]
        depth, normal = sample(base.velocity(model), self._objective, image, base.conditioning, seeds)
        label = decode(base.autoencoder, depth.float())[0].clamp(-1, 1).mean(0).cpu()
        aligned = aligned_depth(label, frame, self._objective.quantization)
        if normal is None:
            return aligned, None
        vectors = decode(base.autoencoder, normal.float())[0].clamp(-1, 1).permute(1, 2, 0).cpu()
        return aligned, normal_from_network(vectors)


def _row(frame: Frame, depth: Tensor, normal: Tensor | None) -> Tensor:
    pictures = [frame.image, depth_colours(depth, frame), depth_colours(frame.depth, frame)]
    if normal is not None:
        pictures += [normal_colours(normal, frame), normal_colours(frame.normal, frame)]
    return sheet_row(pictures, _ROW_WIDTH)
