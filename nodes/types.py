"""The two types that flow between our nodes, and their contracts."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_patcher
import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor

from ..fe2e_core.checkpoint import CheckpointInfo
from ..fe2e_core.conditioning import Conditioning

FE2EModelType = io.Custom("FE2E_MODEL")
FE2EGeometryType = io.Custom("FE2E_GEOMETRY")

# FE2E_GEOMETRY is a dict. Nodes take it and return a copy with keys added; no key ever changes its meaning.
# Always there:
#   "log_depth": torch.Tensor (B, H, W) float32 in [-1, 1], larger is farther, exactly what the network said (Eq. 7)
#   "normal":    torch.Tensor (B, H, W, 3) float32 unit vectors in OpenCV camera axes (x right, y down, z forward):
#                a wall facing the camera is (0, 0, -1)
#   "mask":      torch.Tensor (B, H, W) bool, true where a pixel counts; later steps may only clear pixels
#   "image":     torch.Tensor (B, H, W, 3) float32 in [0, 1], CPU
# Once known:
#   "log_range":  torch.Tensor (B,), ln(far/near) between the 2 % and 98 % percentiles of depth
#   "log_near":   torch.Tensor (B,), so that ln depth = log_range * (log_depth + 1) / 2 + log_near
#   "metric":     bool, true when log_near is in metres, else depth has one unknown scale
#   "depth":      torch.Tensor (B, H, W) float32, along the optical axis, in metres when "metric"
#   "intrinsics": torch.Tensor (B, 3, 3), normalised by width and height as in MOGE_GEOMETRY
#   "confidence": torch.Tensor (B, H, W) float32 in [0, 1]
#   "assumed":    tuple of "log_range", "intrinsics": which of these nothing has told, so that a default stands in
REQUIRED_KEYS = ("log_depth", "normal", "mask", "image")


@dataclass(frozen=True)
class FE2EModel:
    """FE2E_MODEL: all that one prediction needs.

    patcher: ComfyUI's ModelPatcher of the transformer; ComfyUI moves, offloads and frees it. vae: comfy.sd.VAE in
    float32. conditioning: the constant conditioning, CPU. silu_vec: (1, hidden), the input of every modulation
    layer, when the transformer is folded, else None.
    """

    patcher: comfy.model_patcher.ModelPatcher
    vae: comfy.sd.VAE
    conditioning: Conditioning
    silu_vec: Tensor | None
    info: CheckpointInfo

    @property
    def folded(self) -> bool:
        return self.silu_vec is not None


def require_geometry(geometry: object, *keys: str) -> dict[str, Tensor]:
    """Check that an input is an FE2E_GEOMETRY holding these keys besides the constant ones; raise ValueError if not."""
    if not isinstance(geometry, dict):
        raise ValueError(f"geometry: found {type(geometry).__name__}; connect the geometry output of 'Estimate Depth+Normal'")
    missing = [key for key in (*REQUIRED_KEYS, *keys) if key not in geometry]
    if missing:
        hint = ("connect the geometry output of 'Estimate Depth+Normal'" if set(missing) & set(REQUIRED_KEYS) else
                "add the node that finds it first ('Calibrate Camera' for range and intrinsics, 'Anchor Depth' for metres)")
        raise ValueError(f"geometry: it lacks {missing}; {hint}")
    for key, dimensions in (("log_depth", 3), ("normal", 4), ("mask", 3), ("image", 4)):
        value = geometry[key]
        if not isinstance(value, torch.Tensor) or value.ndim != dimensions or value.shape[:3] != geometry["log_depth"].shape[:3]:
            raise ValueError(f"geometry: '{key}' does not have the shape of the contract; "
                             "connect the geometry output of 'Estimate Depth+Normal'")
    return geometry
