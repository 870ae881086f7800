"""What is made of a frame on its way to the objective: label pictures here, latents in `encoding`.

Labels are made where pictures are read, in the worker processes, so nothing here imports diffusers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fe2e_core.geometry import normal_to_network
from fe2e_core.quantization import encode as encode_label
from fe2e_core.quantization import percentile_range
from train.data.frame import BadFrame, Frame
from train.objective import latent_mask


@dataclass(frozen=True)
class LabelledPicture:
    """A frame as pictures for the autoencoder: `image`, `normal` (3,H,W) and `depth` (H,W), all in [-1,1],
    float32; `depth_mask`, `normal_mask` (1,H/8,W/8) float32, 1 where all pixels of a latent count."""

    image: Tensor
    depth: Tensor
    normal: Tensor
    depth_mask: Tensor
    normal_mask: Tensor
    name: str


@dataclass(frozen=True)
class EncodedPicture:
    """`image`, `depth`, `normal` (16,h,w) float32 latents on the FLUX scale; masks (1,h,w) float32."""

    image: Tensor
    depth: Tensor
    normal: Tensor
    depth_mask: Tensor
    normal_mask: Tensor
    name: str


def label_frame(frame: Frame, scheme: str) -> LabelledPicture:
    """Eq. 7's label of the depth in BF16, and the normals in the network's axes.

    The mask is applied before the percentiles; pixels that do not count are as far as can be. Labels beyond
    [-1,1] are clipped: decoding clamps there as well. Raises BadFrame for depth without a range."""
    try:
        span = percentile_range(frame.depth, frame.valid, scheme)
    except ValueError as error:
        raise BadFrame(f"{frame.name}: {error}") from error
    label = encode_label(torch.where(frame.valid, frame.depth, 1.0), span, bf16="nearest").clamp(-1, 1)
    return LabelledPicture(
        image=(frame.image.permute(2, 0, 1) * 2 - 1).contiguous(),
        depth=torch.where(frame.valid, label, -1.0 if scheme == "inverse" else 1.0),
        normal=normal_to_network(frame.normal).permute(2, 0, 1).contiguous(),
        depth_mask=latent_mask(frame.valid[None])[0],
        normal_mask=latent_mask(frame.normal_valid[None])[0],
        name=frame.name,
    )
