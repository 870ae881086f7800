"""What a set of tensors is: the right model, or which of the models that people mistake for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice

from torch import Tensor

from .architecture import (
    HEAD_WIDTH,
    LATENT_CHANNELS,
    TOKEN_WIDTH,
    Shapes,
    TransformerSize,
    autoencoder_shapes,
    missing,
    transformer_shapes,
)
from .folding import has_guidance, is_folded
from .tensorfile import meta

STEP1X = "step1x-edit-i1258.safetensors"
_CONNECTOR = "connector.global_proj_out.weight"
#: The connector of Step1X-Edit v1.0 scales its mean embedding; v1.1 has the same tensors without this one.
_V1_0 = "connector.scale_factor"

_SIGNS = (
    ("guidance_in.in_layer.weight", "a FLUX transformer with guidance (FLUX.1 dev or Kontext)"),
    ("time_text_embed.guidance_embedder.linear_1.weight", "FLUX.1 dev or Kontext in diffusers' names"),
    ("model.diffusion_model.guidance_in.in_layer.weight", "a FLUX.1 dev or Kontext checkpoint with a prefix"),
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a FLUX-shaped transformer inside a ComfyUI checkpoint"),
    ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("input_blocks.0.0.weight", "a Stable Diffusion UNet"),
    ("time_embed.in_layer.weight", "Step1X-Edit in diffusers' names"),
    ("transformer_blocks.0.norm1.linear.weight", "a FLUX transformer in diffusers' names"),
    ("double_stream_modulation_img.lin.weight", "FLUX.2"),
    ("transformer.double_blocks.0.img_attn.qkv.weight", "a packed FE2E checkpoint; choose it as such"),
    ("double_blocks.0.img_attn.qkv.weight", "a FLUX-shaped transformer"),
    ("quant_conv.weight", "an autoencoder of a Stable Diffusion model"),
    ("decoder.up.0.block.0.conv1.weight", "an autoencoder"),
    ("decoder.up_blocks.0.resnets.0.conv1.weight", "an autoencoder in diffusers' names"),
    ("text_model.encoder.layers.0.layer_norm1.weight", "a CLIP text encoder"),
)


def describe(tensors: Mapping[str, Tensor]) -> str:
    """In a few words, what a set of tensors seems to be."""
    if not len(tensors):
        return "it holds no tensors"
    for key, description in _SIGNS:
        if key in tensors:
            return f"it looks like {description}"
    if any(".lora_down." in key or ".lora_A." in key for key in tensors):
        return "it looks like a LoRA"
    return f"its first tensors are {list(islice(tensors, 3))}"


def check_transformer(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError unless these are the tensors of a FLUX-shaped transformer, whole and in shape.

    The names and shapes come from the header: no tensor is read.
    """
    if "double_blocks.0.img_attn.qkv.weight" not in tensors or "img_in.weight" not in tensors:
        raise ValueError(f"{what}: no FLUX-shaped transformer here; {describe(tensors)}. Expected Step1X-Edit v1.0 "
                         f"({STEP1X}) or a packed FE2E checkpoint")
    if is_folded(tensors) and has_guidance(tensors):
        raise ValueError(f"{what}: it is folded and has a guidance input, which folding leaves out; make the file again")
    expected = transformer_shapes(transformer_size(tensors, what), is_folded(tensors), has_guidance(tensors))
    _check_shapes(tensors, expected, what, "transformer")


def check_base(tensors: Mapping[str, Tensor], what: str, released: bool = True) -> None:
    """Raise ValueError unless this is a base to put a LoRA on: whole, in shape and not folded.

    released: the LoRA is the released one, or there is none, so the base must be Step1X-Edit v1.0 (of any size, with
    its connector). A LoRA of one's own may have been trained on any FLUX-shaped base: v1.1, FLUX.1 dev, schnell, Kontext.
    """
    check_transformer(tensors, what)
    if is_folded(tensors):
        raise ValueError(f"{what}: this transformer is folded already; load its file as an FE2E checkpoint")
    if not released:
        return
    if has_guidance(tensors):
        raise ValueError(f"{what}: {describe(tensors)}; FE2E is trained on Step1X-Edit v1.0, which has none ({STEP1X})")
    if _CONNECTOR not in tensors:
        raise ValueError(f"{what}: this is a FLUX-shaped transformer without Step1X-Edit's connector (FLUX.1 schnell?); FE2E is "
                         f"trained on Step1X-Edit v1.0. Choose {STEP1X}")
    if _V1_0 not in tensors:
        raise ValueError(f"{what}: this is Step1X-Edit v1.1 (its connector has no scale_factor); the FE2E LoRA is trained on v1.0 and "
                         f"gives wrong geometry on it. Choose {STEP1X}")


def _count(tensors: Mapping[str, Tensor], prefix: str, field: int) -> int:
    """How many blocks below a prefix there should be: one more than the largest number.

    Where numbers are left out, only so many that one of those is among them: a file can say "block 999999999".
    """
    # nine digits are enough for a number that is not there, and int() has a limit
    numbers = {int(k.split(".")[field][:9]) for k in tensors if re.match(re.escape(prefix) + r"[0-9]+\.", k)}
    return min(1 + max(numbers, default=-1), len(numbers) + 1)


def transformer_size(tensors: Mapping[str, Tensor], what: str) -> TransformerSize:
    """The size of a FLUX-shaped transformer, from its names and shapes. Raises ValueError when it is none."""
    anchors = ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight")
    absent = [name for name in anchors if name not in tensors]
    if absent:
        raise ValueError(f"{what}: {len(absent)} tensors of the transformer are missing, first {absent}; the file is incomplete, "
                         "download it again")
    shapes = [tuple(meta(tensors, name).shape) for name in anchors]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != TOKEN_WIDTH or shapes[0][0] % HEAD_WIDTH:
        raise ValueError(f"{what}: {', '.join(map(repr, anchors))} have the shapes {shapes}; expected (hidden, {TOKEN_WIDTH}), "
                         f"(hidden, context) and (hidden, pooled) with hidden a multiple of {HEAD_WIDTH}. Choose {STEP1X}, or make "
                         "the file again")
    return TransformerSize(shapes[0][0], shapes[1][1], shapes[2][1],
                           _count(tensors, "double_blocks.", 1), _count(tensors, "single_blocks.", 1))


def _check_shapes(tensors: Mapping[str, Tensor], expected: Shapes, what: str, part: str) -> None:
    absent = missing(expected, tensors)
    if absent:
        raise ValueError(f"{what}: {len(absent)} tensors of the {part} are missing, first {absent[:3]}; the file is incomplete, "
                         "download it again")
    wrong = [name for name, shape in expected.items() if tuple(meta(tensors, name).shape) != shape]
    if wrong:
        name = wrong[0]
        raise ValueError(f"{what}: {len(wrong)} tensors of the {part} have the wrong shape, first '{name}': found "
                         f"{tuple(meta(tensors, name).shape)}, expected {expected[name]}; the file belongs to another model or "
                         "is damaged, download it again")


def check_vae(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError unless these are the tensors of a FLUX-shaped autoencoder: 16 latent channels, no quant conv."""
    conv = "decoder.conv_in.weight"
    if conv not in tensors or "encoder.conv_out.weight" not in tensors or "decoder.up_blocks.0.resnets.0.conv1.weight" in tensors:
        raise ValueError(f"{what}: no autoencoder here; {describe(tensors)}. Expected the FLUX autoencoder (ae.safetensors)")
    shape = tuple(meta(tensors, conv).shape)
    channels = shape[1] if len(shape) == 4 else shape
    if channels != LATENT_CHANNELS or "quant_conv.weight" in tensors:
        raise ValueError(f"{what}: this autoencoder has {channels} latent channels"
                         f"{' and a quant_conv' if 'quant_conv.weight' in tensors else ''}; it is not the FLUX autoencoder. "
                         "Expected 16 channels without quant_conv (ae.safetensors)")
    first = "encoder.conv_in.weight"
    width = (*meta(tensors, first).shape, 0)[0] if first in tensors else 0
    levels, blocks = _count(tensors, "encoder.down.", 2), _count(tensors, "encoder.down.0.block.", 4)
    firsts = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    absent = [name for name in (first, *firsts) if name not in tensors]
    if absent or not levels or not width:
        raise ValueError(f"{what}: the tensors {absent or ['encoder.down.*']} of the autoencoder are missing; the file is incomplete, "
                         "download it again")
    multipliers = tuple((*meta(tensors, name).shape, 0)[0] // width for name in firsts)
    _check_shapes(tensors, autoencoder_shapes(width, multipliers, blocks), what, "autoencoder")
