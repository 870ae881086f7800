"""An FE2E checkpoint through diffusers, without ComfyUI: a picture of any size to geometry at exactly that size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fe2e_core import estimation
from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.images import check_image
from fe2e_core.packing import predict_latents
from fe2e_core.tensorfile import TensorFile
from train.backend import decode, encode
from train.bases import open_base
from train.recipe import BaseFiles

DTYPES = ("fp32", "bf16", "fp8")


@dataclass(frozen=True)
class SizeChoice:
    """The size that the network works at; results always have the picture's own.

    mode: one of `fe2e_core.estimation.MODES`. longest_side: pixels, for "longest_side". detail, overlap: for
    "tiled", see `fe2e_core.estimation.tiled_size`.
    """

    mode: str = "trained"
    longest_side: int = 1024
    detail: float = 4.0
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.mode not in estimation.MODES:
            raise ValueError(f"size: found {self.mode!r}, expected one of {', '.join(estimation.MODES)}")
        if not 64 <= self.longest_side <= 8192:
            raise ValueError(f"longest side: found {self.longest_side}, expected 64 to 8192 pixels")
        if not (1 <= self.detail <= 16 and 0.1 <= self.overlap <= 0.5):
            raise ValueError(
                f"detail, overlap: found {self.detail} and {self.overlap}, expected 1 to 16 and 0.1 to 0.5"
            )


class PredictionFailed(RuntimeError):
    """One picture has no result; another one may."""


class GeometryPredictor:
    """A loaded checkpoint. The transformer computes in `dtype` (one of DTYPES), the autoencoder in float32, one
    picture at a time: a result does not depend on what else is predicted.

    digest: note the SHA-256 of the file, which takes a read of all of it. Raises FileNotFoundError, and
    ValueError when the file is no FE2E checkpoint.
    """

    def __init__(self, path: str | Path, dtype: str = "fp32", device: str | torch.device = "cpu",
                 digest: bool = False):
        with TensorFile(path, "checkpoint") as file:
            self.info: CheckpointInfo = read_checkpoint(file).info
        base = open_base(BaseFiles(checkpoint=str(path), dtype=dtype), digest)
        self.digest = base.digest
        self._device = torch.device(device)
        self._autoencoder = base.autoencoder.to(self._device)
        self._velocity = base.velocity(base.transformer.eval().to(self._device))
        stored = base.conditioning
        self._conditioning = Conditioning(
            stored.context.to(self._device, torch.float32), stored.pooled.to(self._device, torch.float32)
        )

    def __call__(self, image: Tensor, size: SizeChoice | None = None) -> dict[str, Tensor]:
        """Picture (H,W,3) in [0,1] -> FE2E_GEOMETRY of a batch of one: `log_depth` (1,H,W) in [-1,1], `normal`
        (1,H,W,3) unit in OpenCV axes, `mask` (1,H,W) all true, `image` (1,H,W,3); float32, CPU.

        Raises ValueError for a tensor that is no picture, PredictionFailed when it does not fit into memory or the
        result is not finite.
        """
        size = size or SizeChoice()
        image = check_image(image[None])
        height, width = image.shape[1:3]
        chosen = estimation.choose_size(
            height, width, size.mode, pixels=self.info.height * self.info.width,
            longest_side=size.longest_side, detail=size.detail, overlap=size.overlap,
        )  # fmt: skip
        with torch.inference_mode():
            log_depth, normal = estimation.estimate(self._predict, image, chosen)
        # plain tensors: those of inference mode cannot be changed in place later
        mask = torch.ones(1, height, width, dtype=torch.bool)
        return {"log_depth": log_depth.clone(), "normal": normal.clone(), "mask": mask, "image": image}

    def _predict(self, count: int, pictures: Callable[[int, int], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """See `fe2e_core.estimation.Predict`."""
        for number in range(count):
            inputs = pictures(number, number + 1)
            try:
                yield self._forward(inputs)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                height, width = inputs.shape[1:3]
                raise PredictionFailed(
                    f"{width}x{height} at once does not fit into memory; choose a smaller size, or tiled"
                ) from error

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(1,h,w,3) in [0,1] -> log-depth (1,h,w) and normals (1,h,w,3) in network axes."""
        latent = encode(self._autoencoder, inputs.to(self._device).permute(0, 3, 1, 2) * 2 - 1)
        latents = predict_latents(self._velocity, latent, self._conditioning)
        decoded = []
        for part in latents:
            picture = decode(self._autoencoder, part.float())
            if not bool(picture.isfinite().all()):
                # Clamping would hide infinities as the end of the range.
                raise PredictionFailed("the result is NaN or infinite; choose the dtype fp32, or download the file again")
            decoded.append(picture.clamp(-1, 1).permute(0, 2, 3, 1).cpu())
        return decoded[0].mean(dim=-1), decoded[1]
