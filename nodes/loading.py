"""Load FE2E Model: a packed checkpoint, or the released parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import comfy.sd
import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..fe2e_core.checkpoint import CheckpointInfo, read_checkpoint
from ..fe2e_core.emptyprompt import read_conditioning
from ..fe2e_core.lora import Merged, match_lora
from ..fe2e_core.promptcache import REMEDY
from ..fe2e_core.provenance import Provenance, provenance
from ..fe2e_core.quantized import Dequantized
from ..fe2e_core.recognition import check_base
from ..fe2e_core.tensorfile import TensorFile
from . import folders
from .backend import build_transformer, build_vae, float32_vae
from .node import Node
from .types import FE2EModel, FE2EModelType
from .weights import WEIGHT_DTYPES

logger = logging.getLogger(__name__)

CHECKPOINT, PARTS = "FE2E checkpoint", "released parts"
NO_LORA, CONNECTED_VAE = "none", "connected VAE"


def load_checkpoint(path: str, lora: str | None, strength: float, dtype: str, fold: bool = True) -> FE2EModel:
    """A single-file FE2E checkpoint -> FE2E_MODEL. lora: a further LoRA's path; folded layers take it as well. fold: a file
    that is folded stays so."""
    with TensorFile(path, "checkpoint") as file:
        checkpoint = read_checkpoint(file)
        tensors, info = _with_lora(checkpoint.transformer, checkpoint.info, lora, strength, checkpoint.silu_vec)
        patcher, silu_vec = build_transformer(tensors, checkpoint.conditioning, checkpoint.silu_vec, WEIGHT_DTYPES[dtype], fold)
        vae = build_vae(checkpoint.vae)
    if not fold and checkpoint.silu_vec is not None:
        logger.warning("FE2E: fold: '%s' was folded when it was packed and stays so; load the released parts to have it unfolded",
                       Path(path).name)
    if info.notice:
        logger.info("FE2E: %s", info.notice)
    return FE2EModel(patcher, vae, checkpoint.conditioning, silu_vec, info)


def load_parts(transformer: str, lora: str | None, strength: float, vae: str | comfy.sd.VAE, prompt_cache: str, dtype: str,
               fold: bool = True) -> FE2EModel:
    """The released files, or a base and the LoRA that one trained on it -> FE2E_MODEL. vae: a path, or a connected
    comfy.sd.VAE. prompt_cache: of Step1X-Edit, or the encoded empty prompt of a base without connector."""
    trained = _provenance(lora)
    if isinstance(vae, str):
        with TensorFile(vae, "VAE") as file:
            built_vae = build_vae(file)
    else:
        built_vae = float32_vae(vae)
    with TensorFile(transformer, "transformer") as file:
        what = f"transformer '{file.path.name}'"
        base = Dequantized(file, file.metadata, what)
        check_base(base, what, released=trained is None)
        if trained is not None and trained.base and trained.base != file.path.name:
            logger.warning("FE2E: the LoRA was trained on '%s'; on '%s' it is right only if that is the same base under another name",
                           trained.base, file.path.name)
        conditioning = read_conditioning(prompt_cache, base, file.metadata.get("connector_heads", ""),
                                         None if trained is None else trained.guidance)
        tensors, info = _with_lora(base, CheckpointInfo(name=file.path.stem, base=file.path.name), lora, strength, None)
        patcher, silu_vec = build_transformer(tensors, conditioning, None, WEIGHT_DTYPES[dtype], fold)
    if info.notice:
        logger.info("FE2E: %s", info.notice)
    return FE2EModel(patcher, built_vae, conditioning, silu_vec, info)


def _provenance(lora: str | None) -> Provenance | None:
    """What the LoRA at this path says of its training."""
    if lora is None:
        return None
    with TensorFile(lora, "LoRA") as file:
        return provenance(file.metadata, f"LoRA '{file.path.name}'")


def _with_lora(tensors: Mapping[str, Tensor], info: CheckpointInfo, lora: str | None, strength: float,
               silu_vec: Tensor | None) -> tuple[Mapping[str, Tensor], CheckpointInfo]:
    """The transformer's tensors with a LoRA merged in as they are read, and the metadata that says so."""
    if lora is None:
        return tensors, info
    with TensorFile(lora, "LoRA") as file:
        merged = Merged(tensors, match_lora(file, tensors, file.path.name), strength, silu_vec)
        trained = provenance(file.metadata, f"LoRA '{file.path.name}'")
        if trained is not None:
            info = trained.of_checkpoint(info)
        names = [info.lora] if info.lora else []
        return merged, replace(info, lora=" + ".join([*names, f"{file.path.name} at {strength:g}"]))


class FE2ELoadModel(Node):
    lists_files = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FE2ELoadModel",
            display_name="Load FE2E Model",
            category="FE2E",
            description="Loads a model that turns one photograph into depth and surface normals: one packed FE2E checkpoint, "
                        "or the released parts (Step1X-Edit, the FE2E LoRA, the FLUX VAE and the empty-prompt cache).",
            search_aliases=["fe2e", "step1x", "depth model", "normal model", "geometry estimation"],
            inputs=[
                io.DynamicCombo.Input("source", tooltip="Where the model comes from: one file with everything in it, or the files as released.", options=[
                    io.DynamicCombo.Option(CHECKPOINT, [
                        io.Combo.Input("checkpoint", options=folders.checkpoints(),
                                       tooltip="A packed FE2E file from the model folder 'fe2e'. fe2e-nano comes with the pack: a small "
                                               "demonstration model that runs on a CPU in seconds."),
                        io.Combo.Input("lora", options=[NO_LORA, *folder_paths.get_filename_list("loras")],
                                       tooltip="A further LoRA from 'loras', trained on this base. The released FE2E LoRA is already in a "
                                               "packed file."),
                        io.Float.Input("lora_strength", default=1.0, min=-2.0, max=2.0, step=0.05, tooltip="Strength of that LoRA."),
                    ]),
                    io.DynamicCombo.Option(PARTS, [
                        io.Combo.Input("transformer", options=folder_paths.get_filename_list("diffusion_models"),
                                       tooltip="Step1X-Edit v1.0 from 'diffusion_models' (step1x-edit-i1258.safetensors, bf16 or FP8); "
                                               "for a LoRA of your own, the base it was trained on."),
                        io.Combo.Input("lora", options=[NO_LORA, *folder_paths.get_filename_list("loras")],
                                       tooltip="The FE2E LoRA from 'loras' (LDRN.safetensors). Without it the editor predicts no geometry."),
                        io.Float.Input("lora_strength", default=1.0, min=-2.0, max=2.0, step=0.05,
                                       tooltip="Strength of the LoRA; it was trained for 1."),
                        io.Combo.Input("vae_name", options=[CONNECTED_VAE, *folder_paths.get_filename_list("vae")],
                                       tooltip="The FLUX autoencoder from 'vae' (ae.safetensors, in some installations vae.safetensors), "
                                               "or the VAE connected below."),
                        io.Combo.Input("prompt_cache", options=folders.prompt_caches(),
                                       tooltip="The empty-prompt cache from the model folder 'fe2e' (no_info.npz); for a base other than "
                                               "Step1X-Edit, the encoded empty prompt it was trained with."),
                    ]),
                ]),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_DTYPES), default="default", advanced=True,
                               tooltip="How the transformer's weights are kept. default: as ComfyUI chooses for this device and file. "
                                       "fp8_e4m3fn and int8 halve the memory of bf16; fp8_e4m3fn_fast also multiplies in fp8, "
                                       "faster on recent cards and less exact."),
                io.Boolean.Input("fold", default=True, advanced=True,
                                 tooltip="Replace the modulation layers, whose input never changes, by their constant output: a quarter "
                                         "less memory, the same result. Switch off only to give the transformer to core LoRA nodes."),
                io.Vae.Input("vae", optional=True,
                             tooltip="A FLUX VAE to use with the released parts when 'connected VAE' is chosen. A float32 copy of it is made."),
            ],
            outputs=[FE2EModelType.Output(display_name="fe2e_model", tooltip="For 'Estimate Depth+Normal'.")],
        )

    @classmethod
    def execute(cls, source: dict, weight_dtype: str = "default", fold: bool = True, vae: comfy.sd.VAE | None = None) -> io.NodeOutput:
        lora = None if source["lora"] == NO_LORA else folders.find("loras", source["lora"], "LoRA")
        if source["source"] == CHECKPOINT:
            path = folders.find(folders.FOLDER, source["checkpoint"], "checkpoint")
            return io.NodeOutput(load_checkpoint(path, lora, source["lora_strength"], weight_dtype, fold))
        if source["vae_name"] == CONNECTED_VAE:
            if vae is None:
                raise ValueError("vae: 'connected VAE' is chosen but no VAE is connected; connect one, or choose ae.safetensors")
            chosen_vae = vae
        else:
            chosen_vae = folders.find("vae", source["vae_name"], "VAE")
        if not source.get("prompt_cache"):
            raise FileNotFoundError(f"prompt cache: none is chosen; {REMEDY}")
        return io.NodeOutput(load_parts(
            folders.find("diffusion_models", source["transformer"], "transformer"), lora, source["lora_strength"], chosen_vae,
            folders.find(folders.FOLDER, source["prompt_cache"], "prompt cache"), weight_dtype, fold))


NODES: list[type[io.ComfyNode]] = [FE2ELoadModel]
