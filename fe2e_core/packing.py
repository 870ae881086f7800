"""Latents <-> transformer tokens, and the prediction rule of FE2E.

The transformer sees two pictures side by side in its sequence, `[zeros | image]`, each cut into 2x2 patches
and both with the *same* position ids. One pass at t = 1 turns the left half into depth and the right half
into normals (paper 3.3 and 3.5). The paper draws the image on the left; the released code, and so the
released weights, have it on the right.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .conditioning import Conditioning

PATCH = 2
#: Multiple of pixels a picture's sides must have: 8x from the autoencoder, 2x from the patches.
PIXEL_MULTIPLE = 16


class Velocity(Protocol):
    """One pass of a FLUX-shaped transformer, whoever implements it.

    tokens (B,N,C), ids (B,N,3), context (B,T,D), context_ids (B,T,3), timestep (B,) in [0,1],
    pooled (B,P) -> (B,N,C).
    """

    def __call__(self, tokens: Tensor, ids: Tensor, context: Tensor, context_ids: Tensor,
                 timestep: Tensor, pooled: Tensor) -> Tensor: ...


def pack(latent: Tensor) -> Tensor:
    """(B,C,h,w) latent -> (B, h/2*w/2, 4C) tokens; a token holds its patch as (channel, row, column).

    Raises ValueError when h or w is odd.
    """
    b, c, h, w = latent.shape
    if h % PATCH or w % PATCH:
        raise ValueError(f"latent: {h}x{w} cannot be cut into {PATCH}x{PATCH} patches; "
                         f"give the autoencoder pictures whose sides are multiples of {PIXEL_MULTIPLE}")
    patches = latent.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack` for a latent of height x width: (B, h/2*w/2, 4C) -> (B,C,h,w)."""
    b, _, d = tokens.shape
    c = d // (PATCH * PATCH)
    patches = tokens.reshape(b, height // PATCH, width // PATCH, c, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)


def position_ids(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Ids of one picture whose latent is height x width: (h/2*w/2, 3) float32 = (0, row, column)."""
    rows, columns = height // PATCH, width // PATCH
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device, dtype=torch.float32)[:, None]
    ids[..., 2] = torch.arange(columns, device=device, dtype=torch.float32)[None, :]
    return ids.reshape(rows * columns, 3)


def join_halves(image_latent: Tensor) -> tuple[Tensor, Tensor]:
    """The transformer's input for a picture: tokens (B,2N,4C) `[zeros | image]` and ids (B,2N,3).

    The left half is the fixed start z_0 = 0 of Eq. 5. Both halves carry the same ids.
    """
    image = pack(image_latent)
    ids = position_ids(*image_latent.shape[-2:], device=image_latent.device)
    tokens = torch.cat([torch.zeros_like(image), image], dim=1)
    return tokens, torch.cat([ids, ids]).expand(image.shape[0], -1, -1)


def split_halves(prediction: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(B,2N,4C) predicted velocity -> (depth latent, normal latent), each (B,C,height,width).

    The released sampler steps from t = 1 to t = 0 on the left half, `z = 0 + (0 - 1) * v`, so depth is
    *minus* that half; the right half it returns untouched, so normals are *plus* that half.
    """
    left, right = prediction.chunk(2, dim=1)
    return -unpack(left, height, width), unpack(right, height, width)


def predict_latents(velocity: Velocity, image_latent: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    """Depth and normal latents of a picture in one pass (Eq. 6 for both halves of Eq. 8).

    image_latent (B,C,h,w): posterior mean of the autoencoder, shifted and scaled. Returns two tensors of the
    same shape. t is exactly 1: the released schedule rounds it to 0.99999994 for some sizes in float32,
    which moves the output by 1e-4 for nothing.
    """
    b, _, h, w = image_latent.shape
    tokens, ids = join_halves(image_latent)
    context = conditioning.context.to(tokens).expand(b, -1, -1)
    context_ids = torch.zeros(b, context.shape[1], 3, device=tokens.device)
    timestep = torch.ones(b, device=tokens.device, dtype=torch.float32)
    pooled = conditioning.pooled.to(tokens).expand(b, -1)
    return split_halves(velocity(tokens, ids, context, context_ids, timestep, pooled), h, w)
