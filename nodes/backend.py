"""Driving ComfyUI's Flux and VAE: building them from our files, one pass, float32 encoding and decoding.

ComfyUI's own loader decides class, dtype and devices; its model management moves, offloads and frees.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import comfy.ldm.flux.math
import comfy.model_detection
import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..fe2e_core.assembly import Assembled
from ..fe2e_core.checkpoint import check_vae
from ..fe2e_core.conditioning import Conditioning
from ..fe2e_core.folding import (
    CONSTANT,
    install_constants,
    is_folded_away,
    modulation_input,
    modulation_modules,
)
from ..fe2e_core.merging import merge_tokens
from ..fe2e_core.packing import PATCH, pack, predict_latents, unpack
from ..fe2e_core.quantized import SIDE_TENSORS
from ..fe2e_core.tensorfile import meta
from .attention import cudnn_first, is_quicker
from .types import FE2EModel
from .weights import WeightDtype, choose

logger = logging.getLogger(__name__)

def _meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same names, shapes and dtypes without data: enough for ComfyUI's detection."""
    return {name: meta(tensors, name) for name in tensors if not name.startswith("connector.")}


def build_transformer(tensors: Mapping[str, Tensor], conditioning: Conditioning, silu_vec: Tensor | None,
                      wanted: WeightDtype, fold: bool = True) -> tuple[comfy.model_patcher.ModelPatcher, Tensor | None]:
    """ComfyUI's Flux with these weights (public FLUX names), and the silu(vec) it is folded with, None if it is not.

    Tensors are read one at a time and dropped once cast. tensors: `Dequantized` (in `Merged`) for files that may be
    quantised. silu_vec: that of a file which is folded already. wanted: how to store the weights. fold: whether to fold
    a transformer that is not. Raises ValueError when ComfyUI does not recognise the transformer, weights are missing,
    or it does not know their format.
    """
    shapes = _meta(tensors)
    if silu_vec is not None or fold:
        shapes = {name: shape for name, shape in shapes.items() if not is_folded_away(name)}
    config = comfy.model_detection.model_config_from_unet(shapes, "")
    if config is None or config.unet_config.get("image_model") != "flux":
        raise ValueError("transformer: ComfyUI does not recognise a FLUX transformer in this file; "
                         "expected step1x-edit-i1258.safetensors or a packed FE2E checkpoint")
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    storage, compute = choose(wanted, tensors, shapes, config)
    if silu_vec is None and fold:
        silu_vec = modulation_input(tensors, conditioning, compute)
    # Without data, so that the weights are in memory once; ComfyUI's quantised layers move theirs to this device.
    model = config.get_model(shapes, "", device=torch.device("meta") if storage.format is None else None)
    if silu_vec is not None:
        sizes = {m: shapes[f"{m}.{CONSTANT if f'{m}.{CONSTANT}' in shapes else 'weight'}"].shape[0] for m in modulation_modules(shapes)}
        install_constants(model.diffusion_model, sizes, dtype=compute)
    assembled = Assembled(tensors, None if silu_vec is None else silu_vec.to(compute), storage)
    layers = {name for name in assembled if not name.endswith(SIDE_TENSORS)}
    wrong = sorted(_parameters(model.diffusion_model) ^ set(config.process_unet_state_dict(dict.fromkeys(layers))))
    if wrong:
        raise ValueError(f"transformer: {len(wrong)} tensors are missing or too many, first {wrong[:3]}; download the file again")
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    # The tensors themselves become the parameters: no second copy of the model in memory.
    model.load_model_weights(dict(assembled), "", assign=True)
    if not mm.is_device_cpu(offload_device):
        model.to(offload_device)
    return patcher, silu_vec


def _parameters(model: torch.nn.Module) -> set[str]:
    """Names of all parameters; ComfyUI's layers for quantised weights have theirs only after loading."""
    return {f"{prefix}.{name}".lstrip(".") for prefix, module in model.named_modules()
            for name in (*(n for n, p in module._parameters.items() if p is not None), *(["weight"] if hasattr(module, "in_features") else []))}


def build_vae(tensors: Mapping[str, Tensor]) -> comfy.sd.VAE:
    """ComfyUI's VAE in float32 from FLUX autoencoder tensors of any width (its own detection knows only width 128)."""
    check_vae(tensors, "VAE")
    weights = {name: tensors[name].float() for name in tensors}
    width = weights["encoder.conv_in.weight"].shape[0]
    levels = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.down."))
    blocks = 1 + max(int(k.split(".")[4]) for k in weights if k.startswith("encoder.down.0.block."))
    multipliers = [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // width for i in range(levels)]
    if (width, multipliers, blocks) == (128, [1, 2, 4, 4], 2):
        return comfy.sd.VAE(sd=weights, dtype=torch.float32)
    params = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": width,
              "ch_mult": multipliers, "num_res_blocks": blocks, "attn_resolutions": [], "dropout": 0.0}
    # The class that takes a config has two 1x1 convolutions that the FLUX autoencoder lacks: load identities, then drop them.
    for name, channels in (("quant_conv", 32), ("post_quant_conv", 16)):
        weights[f"{name}.weight"] = torch.eye(channels)[..., None, None]
        weights[f"{name}.bias"] = torch.zeros(channels)
    vae = comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": params, "embed_dim": 16}}, dtype=torch.float32)
    vae.first_stage_model.quant_conv = torch.nn.Identity()
    vae.first_stage_model.post_quant_conv = torch.nn.Identity()
    vae.latent_channels = 16
    return vae


def float32_vae(vae: comfy.sd.VAE) -> comfy.sd.VAE:
    """A connected VAE, checked to be FLUX-shaped, as our own float32 copy: the one given keeps its dtype for others."""
    return build_vae(vae.get_sd())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device ran out of memory (CUDA, MPS, CPU allocator)."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text or "can't allocate memory" in text)


def encode(model: FE2EModel, pixels: Tensor) -> Tensor:
    """(B,H,W,3) in [0,1] -> (B,16,H/8,W/8) latent, posterior mean, shifted and scaled; float32 on the VAE's device."""
    vae = model.vae
    x = pixels.movedim(-1, 1)
    mm.load_models_gpu([vae.patcher], memory_required=vae.memory_used_encode(x.shape, torch.float32))
    latent = vae.first_stage_model.encode(x.to(vae.device, torch.float32) * 2 - 1)
    return model.patcher.model.process_latent_in(latent.float())


#: ComfyUI's attention functions that take an additive mask (1,1,1,L) and add it exactly. Sage and flash attention
#: drop it or fall back to a slower kernel.
MASK_ATTENTION = ("attention_basic", "attention_pytorch", "attention_split", "attention_sub_quad")


def _adds_masks_cheaply(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a mask costs less than merged tokens save on this device. By rule, not by timing: the same input must
    always give the same bits. Measured on CPUs only (benchmarks/merging.py); elsewhere all tokens are kept."""
    if "optimized_attention_override" in patcher.model_options.get("transformer_options", {}):
        return False
    return patcher.load_device.type == "cpu" and comfy.ldm.flux.math.optimized_attention.__name__ in MASK_ATTENTION


def transform(model: FE2EModel, image_latent: Tensor) -> tuple[Tensor, Tensor]:
    """One pass of the transformer: image latent -> (depth latent, normal latent), float32.

    Goes through the model's normal entrance, wrappers and patches included, so that what core nodes add to a MODEL
    (torch.compile, attention patches, caches) applies here as in sampling.
    """
    patcher = model.patcher
    b, c, h, w = image_latent.shape
    # Both halves are in the sequence, hence twice the height.
    mm.load_models_gpu([patcher], memory_required=patcher.memory_required([b, c, 2 * h, w]))
    base = patcher.model
    dtype = base.get_dtype_inference()
    conditioning, extra = model.conditioning, {}
    if conditioning.guidance is not None and base.diffusion_model.params.guidance_embed:
        extra["guidance"] = torch.full((b,), conditioning.guidance, device=patcher.load_device)
    picture_tokens = 2 * (h // PATCH) * (w // PATCH)
    if _adds_masks_cheaply(patcher):  # asked first: comparing the tokens takes a millisecond or more of every pass
        merged = merge_tokens(conditioning.context.to(dtype))
        if merged.saves(picture_tokens):
            conditioning = replace(conditioning, context=merged.context)
            extra["attention_mask"] = merged.mask(picture_tokens, dtype).to(patcher.load_device)

    def velocity(tokens: Tensor, ids: Tensor, context: Tensor, context_ids: Tensor, timestep: Tensor, pooled: Tensor) -> Tensor:
        # The two halves stacked in height give just the sequence [zeros | image]; only the ids of the second half
        # would go on counting rows, so they are replaced (reference latents would shift the ids and be cut off).
        stacked = torch.cat([unpack(half, h, w) for half in tokens.chunk(2, dim=1)], dim=2)
        options = _transformer_options(patcher, ids)
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            lambda *args, **kwargs: base.diffusion_model(*args, **kwargs), base,
            comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.APPLY_MODEL, options))
        out = run.execute(stacked.to(dtype), timestep, context.to(dtype), y=pooled.to(dtype), transformer_options=options,
                          **extra)
        return torch.cat([pack(half) for half in out.chunk(2, dim=2)], dim=1)

    depth, normal = predict_latents(velocity, image_latent.to(patcher.load_device), conditioning)
    return depth.float(), normal.float()


def _transformer_options(patcher: comfy.model_patcher.ModelPatcher, ids: Tensor) -> dict:
    """The patcher's transformer options as sampling would assemble them, plus the ids of our two halves."""
    options = patcher.model_options.get("transformer_options", {}).copy()
    options["wrappers"] = comfy.patcher_extension.merge_nested_dicts(options.get("wrappers", {}), patcher.wrappers)
    patches = dict(options.get("patches", {}))
    patches["post_input"] = [*patches.get("post_input", []), lambda state: state | {"img_ids": ids}]
    options["patches"] = patches
    if is_quicker(patcher.load_device):
        options.setdefault("optimized_attention_override", cudnn_first)  # the user's own comes first
    return options


def decode(model: FE2EModel, latent: Tensor) -> Tensor:
    """(B,16,h,w) latent -> (B,8h,8w,3) float32 in [-1,1], clamped, on the CPU.

    comfy.sd.VAE.decode would tile without a word when memory runs out and may return float16; here running out is
    the caller's to handle.
    """
    vae = model.vae
    latent = model.patcher.model.process_latent_out(latent)
    mm.load_models_gpu([vae.patcher], memory_required=vae.memory_used_decode(latent.shape, torch.float32))
    decoded = vae.first_stage_model.decode(latent.to(vae.device, torch.float32))
    if not bool(decoded.isfinite().all()):
        # Clamping would hide infinities as the end of the range.
        raise RuntimeError("VAE: its result is NaN or infinite in float32; the VAE file is broken, load ae.safetensors again")
    return decoded.float().clamp(-1, 1).movedim(1, -1).cpu()


def chunk_size(model: FE2EModel, height: int, width: int, frames: int) -> int:
    """How many pictures of this size to take at once, by the memory that is free once the transformer is loaded, whether or
    not it is now; at least 1."""
    if mm.is_device_cpu(model.patcher.load_device):
        # Nothing to gain there, and the result's last bits then do not depend on the memory that happens to be free.
        return 1
    shape = [1, 16, height // 8, 2 * width // 8]
    decode = model.vae.memory_used_decode([1, 16, height // 8, width // 8], torch.float32)
    need = max(model.patcher.memory_required(shape), decode)
    pending = max(0, model.patcher.model_size() - model.patcher.loaded_size())
    free = mm.get_free_memory(model.patcher.load_device) - pending
    return int(max(1, min(frames, 16, free // max(1, 2 * need))))
