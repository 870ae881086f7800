"""FE2E's training objective (section 3.3 and 3.5, Eq. 5, 6 and 8) in latents."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fe2e_core.conditioning import Conditioning
from fe2e_core.packing import Velocity, predict_latents


def latent_mask(valid: Tensor) -> Tensor:
    """Valid pixels (B,H,W) bool -> valid latents (B,1,H/8,W/8) float: one bad pixel of 64 spoils a latent."""
    invalid = (~valid).float()[:, None]
    return 1 - F.max_pool2d(invalid, 8)


def joint_loss(
    velocity: Velocity,
    image: Tensor,
    depth: Tensor,
    normal: Tensor,
    weight: Tensor,
    conditioning: Conditioning,
    depth_factor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(depth loss, normal loss), scalars: mean |v_D - p_l|^2 and |v_N - p_r|^2 over latents by `weight`.

    image, depth, normal (B,16,h,w): shifted and scaled latents; weight (B,1,h,w) >= 0. The start is the zero latent
    and t is 1 (`predict_latents`), so a target velocity is a target latent up to the sign of its half: with the depth
    latent *minus* the left half, |v_D - p_l|^2 is the squared distance of depth latents. `depth_factor` (B,), where
    given, multiplies each sample's share of the depth loss.
    """
    predicted_depth, predicted_normal = predict_latents(velocity, image, conditioning)
    total = weight.sum().clamp_min(1e-6) * image.shape[1]
    of_depth = weight if depth_factor is None else weight * depth_factor[:, None, None, None]
    losses = [
        ((prediction.float() - target).square() * share).sum() / total
        for prediction, target, share in ((predicted_depth, depth, of_depth), (predicted_normal, normal, weight))
    ]
    return losses[0], losses[1]
