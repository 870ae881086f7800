"""The FE2E checkpoint: one safetensors file with everything a prediction needs.

    transformer.<public FLUX name>     folded: `.constant` in place of each modulation Linear's weight and bias;
                                       quantised: beside a weight its `.weight_scale` and `.comfy_quant`
    vae.<FLUX autoencoder name>
    conditioning.context (1,T,C), conditioning.pooled (1,P), conditioning.silu_vec (1,hidden)
    conditioning.guidance (1,)         only with a transformer that has a guidance input and is not folded
    metadata: format "fe2e", format_version, and the fields of `CheckpointInfo`

`silu_vec` is what every modulation layer is given; with it a later LoRA on a folded layer can still be applied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor

from .conditioning import Conditioning
from .folding import has_guidance, is_folded
from .quantization import SCHEMES
from .quantized import Dequantized
from .recognition import check_transformer, check_vae, describe
from .tensorfile import Joined, Prefixed, TensorFile, meta, write_tensors

FORMAT = "fe2e"
FORMAT_VERSION = 1
#: The release was trained at this size (paper 4.1); it is the default pixel budget.
RELEASED_SIZE = (768, 1024)

#: Sentences of a notice. Where the labels are not logarithms, no node knows the two numbers that would make them so.
NO_NORMALS = "this LoRA was trained on depth alone: the normals it gives mean nothing"
OTHER_LABELS = {
    "inverse": "its depth labels are inverse depth, which is decoded as log-depth: near and far are swapped, and depth, points and "
               "meshes are wrong",
    "uniform": "its depth labels are depth itself, which is decoded as log-depth: what lies between near and far comes out too "
               "near, and depth, points and meshes are wrong",
    "sqrt": "its depth labels are the square root of depth, which is decoded as log-depth: what lies between near and far comes "
            "out too near, and depth, points and meshes are wrong",
}
_BETWEEN = "; "


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    height, width: the picture size it was trained at, pixels. quantization: how depth labels were made ("log",
    "inverse", "uniform", "sqrt"). base, lora, vae: file names. base_sha256, lora_sha256, vae_sha256: SHA-256 of those
    files where they were at hand. license: of each part. notice: shown once on loading, sentences with "; " between.
    """

    name: str
    height: int = RELEASED_SIZE[0]
    width: int = RELEASED_SIZE[1]
    quantization: str = "log"
    base: str = ""
    lora: str = ""
    vae: str = ""
    base_sha256: str = ""
    lora_sha256: str = ""
    vae_sha256: str = ""
    license: str = ""
    notice: str = ""

    @property
    def joint(self) -> bool:
        """Whether normals were trained. It stands in the notice, where files have it that were packed before one asked."""
        return NO_NORMALS not in self.notice

    def noted(self, joint: bool) -> CheckpointInfo:
        """The same with a notice of what the labels, and normals that were not trained, mean for what it gives."""
        ours = (NO_NORMALS, *OTHER_LABELS.values())
        said = [part for part in self.notice.split(_BETWEEN) if part and part not in ours]
        said += [] if joint else [NO_NORMALS]
        said += [OTHER_LABELS[self.quantization]] if self.quantization in OTHER_LABELS else []
        return replace(self, notice=_BETWEEN.join(said))


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read from the file when asked for.

    transformer: public FLUX names, folded or not (`folding.is_folded`), quantised weights read as float32
    (`Dequantized.quantized` gives them as stored). vae: FLUX autoencoder names. silu_vec: (1, hidden) or None.
    """

    info: CheckpointInfo
    transformer: Dequantized
    vae: Mapping[str, Tensor]
    conditioning: Conditioning
    silu_vec: Tensor | None


def read_checkpoint(file: TensorFile) -> Checkpoint:
    """Check a file's format and its parts.

    Raises ValueError when it is no FE2E checkpoint, was written by a newer version, or lacks a part.
    """
    name = file.path.name
    if file.metadata.get("format") != FORMAT:
        raise ValueError(f"{file.what}: '{name}' is a safetensors file but no FE2E checkpoint ({describe(file)}); choose a file made by "
                         "'Save FE2E Checkpoint', or load the released parts instead")
    version = file.metadata.get("format_version", "")
    if version not in map(str, range(1, FORMAT_VERSION + 1)):
        raise ValueError(f"{file.what}: '{name}' has format version {version or 'unknown'}, this pack reads up to {FORMAT_VERSION}; "
                         "update the pack")
    transformer = Dequantized(Prefixed(file, "transformer."), what=file.what)
    vae = Prefixed(file, "vae.")
    check_transformer(transformer, file.what)
    check_vae(vae, file.what)
    missing = [k for k in ("conditioning.context", "conditioning.pooled") if k not in file]
    missing += ["conditioning.silu_vec"] * (is_folded(transformer) and "conditioning.silu_vec" not in file)
    missing += ["conditioning.guidance"] * (has_guidance(transformer) and "conditioning.guidance" not in file)
    if missing:
        raise ValueError(f"{file.what}: '{name}' lacks {missing}; the file is incomplete, make it again")
    _check_conditioning(file, transformer, file.what)
    silu_vec = file.get("conditioning.silu_vec")
    guidance = float(file["conditioning.guidance"].float().reshape(-1)[0]) if has_guidance(transformer) else None
    conditioning = Conditioning(file["conditioning.context"], file["conditioning.pooled"], guidance)
    return Checkpoint(_info(file.metadata, file.what), transformer, vae, conditioning, silu_vec)


def _check_conditioning(tensors: Mapping[str, Tensor], transformer: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError unless context, pooled vector and silu(vec) have the widths that this transformer takes."""
    hidden, context = meta(transformer, "txt_in.weight").shape
    pooled = meta(transformer, "vector_in.in_layer.weight").shape[1]
    for name, dimensions, width in (("context", 3, context), ("pooled", 2, pooled), ("silu_vec", 2, hidden)):
        key = f"conditioning.{name}"
        shape = tuple(meta(tensors, key).shape) if key in tensors else None
        if shape is not None and (len(shape) != dimensions or shape[0] != 1 or shape[-1] != width):
            expected = (1, "tokens", width) if dimensions == 3 else (1, width)
            raise ValueError(f"{what}: '{key}' has shape {shape}, this transformer takes {expected}; the parts of the file do not "
                             "belong together, make it again")


def _info(metadata: Mapping[str, str], what: str) -> CheckpointInfo:
    values: dict[str, object] = {}
    for field in fields(CheckpointInfo):
        if field.name not in metadata:
            continue
        text = metadata[field.name]
        if field.type == "int":
            if not (text.isascii() and text.isdigit() and len(text) < 6) or not 16 <= int(text) <= 65536:
                raise ValueError(f"{what}: metadata '{field.name}' is {text!r}; expected pixels between 16 and 65536")
            values[field.name] = int(text)
        else:
            values[field.name] = text
    info = CheckpointInfo(**{"name": "unnamed", **values})
    if info.quantization not in SCHEMES:
        raise ValueError(f"{what}: metadata 'quantization' is {info.quantization!r}; expected one of {', '.join(SCHEMES)}")
    return info.noted(info.joint)


def write_checkpoint(path: str | os.PathLike, info: CheckpointInfo, transformer: Mapping[str, Tensor],
                     vae: Mapping[str, Tensor], conditioning: Conditioning, silu_vec: Tensor | None,
                     on_step: Callable[[int, int], None] | None = None) -> None:
    """Write a checkpoint atomically, each tensor fetched when its turn comes: lazy mappings stay lazy.

    Arguments as in `Checkpoint`, and a quantised transformer with its scales and markers (`assembly.Assembled`);
    on_step as in `write_tensors`. Raises ValueError when a part is not whole, before anything is written.
    """
    constants = {"context": conditioning.context, "pooled": conditioning.pooled}
    if silu_vec is not None:
        constants["silu_vec"] = silu_vec
    elif is_folded(transformer):
        raise ValueError("transformer: it is folded and silu(vec) is missing; without it no later LoRA could be applied")
    if has_guidance(transformer):
        if conditioning.guidance is None:
            raise ValueError("conditioning: the transformer has a guidance input and no guidance is given")
        constants["guidance"] = torch.tensor([conditioning.guidance])
    names = [name for name in transformer if not name.startswith("connector.")]
    check_transformer(Dequantized(transformer), "transformer")
    check_vae(vae, "VAE")
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION)} | {k: str(v) for k, v in asdict(info).items()}
    parts = {"transformer.": (transformer, names), "vae.": (vae, list(vae)), "conditioning.": (constants, list(constants))}
    write_tensors(path, Joined(parts), metadata, on_step)
