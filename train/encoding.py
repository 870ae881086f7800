"""Label pictures -> latents, one picture at a time, so that a picture's latents are the same bits in every
batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from train.backend import encode
from train.labels import EncodedPicture, LabelledPicture


@dataclass(frozen=True)
class EncodedBatch:
    """B encoded pictures, stacked: latents (B,16,h,w), masks (B,1,h,w), and their names."""

    image: Tensor
    depth: Tensor
    normal: Tensor
    depth_mask: Tensor
    normal_mask: Tensor
    names: tuple[str, ...]


@torch.no_grad()
def encode_pixels(autoencoder: AutoencoderKL, pixels: Tensor, device: torch.device) -> Tensor:
    """(3,H,W) in [-1,1] -> (16,H/8,W/8) float32 on `device`, where the autoencoder is."""
    return encode(autoencoder, pixels[None].to(device).contiguous())[0].float().contiguous()


def encode_picture(
    autoencoder: AutoencoderKL, picture: LabelledPicture, device: torch.device
) -> EncodedPicture:
    """The latents of one picture on `device`; the masks stay where they are."""
    return EncodedPicture(
        image=encode_pixels(autoencoder, picture.image, device),
        depth=encode_pixels(autoencoder, picture.depth.expand(3, -1, -1), device),
        normal=encode_pixels(autoencoder, picture.normal, device),
        depth_mask=picture.depth_mask,
        normal_mask=picture.normal_mask,
        name=picture.name,
    )


def stack(pictures: Sequence[EncodedPicture], device: torch.device) -> EncodedBatch:
    """Encoded pictures of one size as a batch on `device`."""

    def joined(key: str) -> Tensor:
        return torch.stack([getattr(picture, key).to(device) for picture in pictures])

    return EncodedBatch(
        image=joined("image"),
        depth=joined("depth"),
        normal=joined("normal"),
        depth_mask=joined("depth_mask"),
        normal_mask=joined("normal_mask"),
        names=tuple(picture.name for picture in pictures),
    )
