"""Running the network over many pictures: in chunks that fit, interruptible, never with NaN as a result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import comfy.model_management as mm
import comfy.utils
from torch import Tensor

from . import backend
from .overflow import watch, wider
from .types import FE2EModel

logger = logging.getLogger(__name__)

STEPS = 4
"""Progress steps for each picture: encode, transform, decode depth, decode normals."""


@dataclass
class Run:
    """One execution of a node.

    model: what to run; its compute dtype is raised for the rest of the run when half precision overflows.
    chunk: pictures at once, 0 for as many as memory allows; halved when it does not. pictures: how many there
    will be in all, for the progress bar.
    """

    model: FE2EModel
    chunk: int
    pictures: int
    done: int = 0

    def __post_init__(self) -> None:
        self._progress = comfy.utils.ProgressBar(self.pictures * STEPS)

    def show(self, picture_steps: int) -> None:
        """Progress within the pictures at work."""
        self._progress.update_absolute(self.done * STEPS + picture_steps)

    def predict(self, count: int, pictures: Callable[[int, int], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-depth (b,h,w) in [-1,1] and normals (b,h,w,3) in network axes, chunk by chunk, float32, CPU.

        pictures(start, stop): model inputs (b,h,w,3) of that range, all of one size with sides that are
        multiples of 16. Raises RuntimeError when not even one picture fits, or when results are not finite
        even in float32.
        """
        start, chunk = 0, 0
        while start < count:
            inputs = pictures(start, min(count, start + (chunk or 1)))
            height, width = inputs.shape[1:3]
            if not chunk:
                chunk = self.chunk or backend.chunk_size(self.model, height, width, count)
                inputs = pictures(start, min(count, start + chunk))
            try:
                depth, normal = self._forward(inputs)
            except Exception as error:
                if not backend.is_out_of_memory(error):
                    raise
                mm.soft_empty_cache()
                if inputs.shape[0] == 1:
                    raise RuntimeError(
                        f"image: one picture at {width}x{height} does not fit into memory; choose a "
                        "smaller 'size' (trained size or longest side) or start ComfyUI with --lowvram") from error
                chunk = self.chunk = max(1, inputs.shape[0] // 2)
                logger.warning("FE2E: out of memory, going on with %d pictures at once", chunk)
                self.show(0)
                continue
            start += inputs.shape[0]
            self.done += inputs.shape[0]
            self.show(0)
            yield depth.mean(dim=-1), normal

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(b,h,w,3) -> decoded depth and normals, both (b,h,w,3)."""
        b = inputs.shape[0]
        self._check_interrupted()
        latent = backend.encode(self.model, inputs)
        self.show(b)
        self._check_interrupted()
        latents = self._transform(latent)
        decoded = []
        for number, part in enumerate(latents):
            self.show((2 + number) * b)
            self._check_interrupted()
            decoded.append(backend.decode(self.model, part))
        return decoded[0], decoded[1]

    def _transform(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The transformer's pass, repeated in a wider dtype when numbers leave its range."""
        while True:
            with watch(self.model.patcher) as seen:
                depth, normal = backend.transform(self.model, latent)
            if not seen.overflowed() and bool(depth.isfinite().all()) and bool(normal.isfinite().all()):
                return depth, normal
            self.model = wider(self.model)

    @staticmethod
    def _check_interrupted() -> None:
        # The progress bar looks for an interruption only now and then; a pass takes seconds.
        mm.throw_exception_if_processing_interrupted()
