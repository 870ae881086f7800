"""How a transformer's weights are kept: what a user may choose, and what ComfyUI would choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import comfy.cli_args
import comfy.model_management as mm
import comfy.quant_ops
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ..fe2e_core.assembly import AS_STORED, Storage
from ..fe2e_core.quantized import FORMATS, FP8, stored_as


@dataclass(frozen=True)
class WeightDtype:
    """dtype: of all weights, None: ComfyUI's choice. format: quantise the Linears of the blocks in this format of
    ComfyUI's. fast: multiply in that format as well, where the device can, which rounds the activations too."""

    dtype: torch.dtype | None = None
    format: str | None = None
    fast: bool = False


#: By the names that ComfyUI's own loader uses, where it has one.
WEIGHT_DTYPES = {
    "default": WeightDtype(),
    "bf16": WeightDtype(torch.bfloat16),
    "fp16": WeightDtype(torch.float16),
    "fp32": WeightDtype(torch.float32),
    "fp8_e4m3fn": WeightDtype(format="float8_e4m3fn"),
    "fp8_e4m3fn_fast": WeightDtype(format="float8_e4m3fn", fast=True),
}
if "int8_tensorwise" in comfy.quant_ops.QUANT_ALGOS:  # ComfyUI 0.27 and later
    # Its int8 layers always round the activations as well, each token with its own scale.
    WEIGHT_DTYPES |= {"int8": WeightDtype(format="int8_tensorwise", fast=True)}


def choose(wanted: WeightDtype, tensors: Mapping[str, Tensor], shapes: Mapping[str, Tensor],
           config: comfy.supported_models_base.BASE) -> tuple[Storage, torch.dtype]:
    """How these tensors are to be kept, and the dtype to calculate in. Sets ComfyUI's model config accordingly.

    Follows ComfyUI: a file with scaled weights keeps them, and --fp8_e4m3fn-unet and its like are obeyed; but where
    ComfyUI would cast to fp8 without a scale we quantise with one, which loses less. Raises ValueError when the file
    holds a format that this ComfyUI does not know.
    """
    modules = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
    found = [stored for module in modules if (stored := stored_as(tensors, module)) is not None]
    unknown = {s.format for s in found} - set(comfy.quant_ops.QUANT_ALGOS)
    if unknown and wanted == WeightDtype():
        raise ValueError(f"transformer: it is quantised as {sorted(unknown)}, which this ComfyUI does not know; update ComfyUI, or "
                         "choose bf16 as weight_dtype")
    dtype, format_ = wanted.dtype, wanted.format
    if dtype is None and format_ is None:
        dtype = mm.unet_dtype(model_params=comfy.utils.calculate_parameters(shapes),
                              supported_dtypes=list(config.supported_inference_dtypes),
                              weight_dtype=comfy.utils.weight_dtype(shapes))
        if any(stored.scaled for stored in found) or (dtype in FP8 and found):
            format_ = AS_STORED
        elif dtype in FP8:
            format_ = next(name for name, (stored, _) in FORMATS.items() if stored == dtype)
    device = mm.get_torch_device()
    if format_ is None:
        manual_cast = mm.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
        config.set_inference_dtype(dtype, manual_cast)
        compute = manual_cast or dtype
        return Storage(dtype, None, compute), compute
    compute = mm.unet_manual_cast(None, device, config.supported_inference_dtypes)
    config.set_inference_dtype(compute, compute)
    config.quant_config = {"mixed_ops": True}
    fast = wanted.fast or comfy.cli_args.PerformanceFeature.Fp8MatrixMultiplication in comfy.cli_args.args.fast
    return Storage(compute, format_, compute, full_precision=not fast), compute
