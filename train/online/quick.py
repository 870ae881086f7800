"""A quick score on the device, to see where a training stands. The figures of the model's card are `train score-nano`'s."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from fe2e_core.geometry import normal_from_network
from fe2e_core.metrics import abs_rel, align_log, angular_error_deg
from fe2e_core.packing import predict_latents
from train.backend import decode, encode, velocity_of
from train.online.raycast import RayCaster
from train.online.source import PACKET, draw_packet
from train.scenes import HELD_OUT
from train.transformer import ConditionedTransformer

_VALIDATION = HELD_OUT + 200_000_000
"""Scenes for choosing, which are neither trained on nor in any card."""


@torch.compiler.set_stance("force_eager")  # one size and float32, once: not worth a compiler's minute
@torch.inference_mode()
def quick_score(
    model: ConditionedTransformer, autoencoder: AutoencoderKL, mixture: str, scenes: int, size: tuple[int, int],
    device: torch.device,
) -> tuple[float, float]:
    """(AbsRel after log alignment, mean angle in degrees), means over usable validation scenes, in float32."""
    cast, errors, angles = RayCaster(device), [], []
    for packet in range(-(-scenes // PACKET)):
        found = cast(draw_packet(packet, mixture, _VALIDATION).to(device), *size)
        latent = torch.cat([encode(autoencoder, part * 2 - 1) for part in found.image.split(8)])
        latents = torch.cat(predict_latents(velocity_of(model.transformer), latent, model.conditioning()))
        pictures = torch.cat([decode(autoencoder, part) for part in latents.split(8)]).clamp(-1, 1)
        depth, normal = pictures.chunk(2)
        for i in range(min(PACKET, scenes - packet * PACKET)):
            valid = found.valid[i]
            if valid.float().mean() < 0.4 or float(found.depth[i][valid].min()) <= 0.05:
                continue
            aligned = align_log(depth[i].mean(0).cpu(), found.depth[i].cpu(), valid.cpu())
            errors.append(abs_rel(aligned.depth, found.depth[i].cpu(), valid.cpu()))
            angle = angular_error_deg(normal_from_network(normal[i].permute(1, 2, 0)), found.normal[i].permute(1, 2, 0))
            angles.append(float(angle[valid].mean()))
    return sum(errors) / len(errors), sum(angles) / len(angles)
