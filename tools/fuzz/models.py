"""Model files: the FE2E checkpoint, the released transformer, LoRAs of two formats, the VAE, the prompt cache."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fe2e_core.architecture import TransformerSize, autoencoder_shapes, transformer_shapes
from fe2e_core.assembly import AS_STORED, Assembled, Storage
from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.emptyprompt import read_conditioning
from fe2e_core.lora import Merged, match_lora
from fe2e_core.promptcache import read_prompt_cache
from fe2e_core.quantized import Dequantized
from fe2e_core.recognition import check_base, check_vae
from fe2e_core.tensorfile import TensorFile
from tools.fuzz.targets import Target, require

_SIZE = TransformerSize(hidden=128, context=8, pooled=8, double_blocks=1, single_blocks=1)
_LLM = 8
_CACHE = "no_info.npz"
_FP8 = torch.float8_e4m3fn


def _draw(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: (0.05 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


def _connector() -> dict[str, tuple[int, ...]]:
    c, shapes = _SIZE.context, {"scale_factor": (1,)}
    block = "S.individual_token_refiner.blocks.0"
    linears = {"S.input_embedder": (c, _LLM), "S.t_embedder.mlp.0": (c, 256), "S.t_embedder.mlp.2": (c, c),
               "S.c_embedder.linear_1": (c, _LLM), "S.c_embedder.linear_2": (c, c), "global_proj_out": (_SIZE.pooled, _LLM),
               f"{block}.self_attn_qkv": (3 * c, c), f"{block}.self_attn_proj": (c, c), f"{block}.mlp.fc1": (4 * c, c),
               f"{block}.mlp.fc2": (c, 4 * c), f"{block}.adaLN_modulation.1": (2 * c, c),
               f"{block}.norm1": (c,), f"{block}.norm2": (c,)}  # fmt: skip
    for name, shape in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return {f"connector.{name}": shape for name, shape in shapes.items()}


def _vae() -> dict[str, Tensor]:
    return _draw(autoencoder_shapes(8, (1, 2), 1), torch.bfloat16)


def _transformer(folded: bool = False) -> dict[str, Tensor]:
    return _draw(transformer_shapes(_SIZE, folded), _FP8)


# -- the packed checkpoint ----------------------------------------------------------------------------------


def _write_checkpoint(folder: Path) -> None:
    silu_vec = torch.ones(1, _SIZE.hidden)
    conditioning = Conditioning(torch.ones(1, 3, _SIZE.context), torch.ones(1, _SIZE.pooled))
    info = CheckpointInfo(name="tiny", height=64, width=96, notice="a notice")
    parts = {"plain": (_transformer(), None, Storage(format=AS_STORED)), "folded": (_transformer(True), silu_vec, Storage()),
             "int8": (_transformer(True), silu_vec, Storage(torch.bfloat16, "int8_tensorwise"))}  # fmt: skip
    for name, (tensors, vector, storage) in parts.items():
        assembled = Assembled(Dequantized(tensors), None, storage)
        write_checkpoint(folder / f"{name}.safetensors", info, assembled, _vae(), conditioning, vector)


def _read_checkpoint(path: Path) -> None:
    with TensorFile(path, "checkpoint") as file:
        found = read_checkpoint(file)
        require(16 <= found.info.height <= 65_536 and 16 <= found.info.width <= 65_536, "a size that pictures can have")
        # as loading does, one tensor at a time, quantised ones as they lie
        for tensors in (Assembled(found.transformer, found.silu_vec, Storage(format=AS_STORED)), found.vae):
            for name in tensors:
                require(tensors[name].shape == tensors.meta(name).shape, f"'{name}' as large as its header says")


# -- the released transformer -------------------------------------------------------------------------------


def _write_base(folder: Path) -> None:
    np.savez(folder / _CACHE, embeds=np.ones((4, _LLM), np.float32), masks=np.array([1, 1, 0, 0]))
    tensors = _transformer() | _draw(_connector(), torch.float32)
    save_file(tensors, folder / "base.safetensors", {"connector_heads": "2"})
    scaled = dict(tensors)
    module = "single_blocks.0.linear1"
    scaled[f"{module}.weight_scale"] = torch.tensor(0.5)
    scaled[f"{module}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    layers = {"layers": {"single_blocks.0.linear2": {"format": "float8_e4m3fn"}}}
    scaled["single_blocks.0.linear2.weight_scale"] = torch.full((128, 1), 0.5)
    save_file(scaled, folder / "scaled.safetensors", {"_quantization_metadata": json.dumps(layers)})


def _read_base(path: Path) -> None:
    with TensorFile(path, "transformer") as file:
        base = Dequantized(file, file.metadata, "transformer")
        check_base(base, "transformer")
        found = read_conditioning(path.parent / _CACHE, base, file.metadata.get("connector_heads", ""))
        require(found.context.shape == (1, 4, _SIZE.context), "one context row for each token")
        for name in (assembled := Assembled(base, None, Storage(format=AS_STORED))):
            require(assembled[name].shape == assembled.meta(name).shape, f"'{name}' as large as its header says")


# -- LoRAs --------------------------------------------------------------------------------------------------


def _write_lora(folder: Path) -> None:
    generator = torch.Generator().manual_seed(2)

    def factors(down: str, up: str, out: int, wide: int) -> dict[str, Tensor]:
        return {down: torch.randn(2, wide, generator=generator), up: torch.randn(out, 2, generator=generator)}

    h = _SIZE.hidden
    kohya = factors("lora_unet_single_blocks_0_linear1.lora_down.weight",
                    "lora_unet_single_blocks_0_linear1.lora_up.weight", 7 * h, h)  # fmt: skip
    kohya |= {"lora_unet_single_blocks_0_linear1.alpha": torch.tensor(1.0),
              "lora_unet_single_blocks_0_modulation_lin.diff_b": torch.randn(3 * h, generator=generator)}  # fmt: skip
    save_file(kohya, folder / "kohya.safetensors", {"ss_network_dim": "2"})
    peft: dict[str, Tensor] = {}
    for part in ("to_q", "to_k"):
        name = f"transformer.transformer_blocks.0.attn.{part}"
        peft |= factors(f"{name}.lora_A.weight", f"{name}.lora_B.weight", h, h)
    peft["transformer.transformer_blocks.0.attn.to_q.lora_B.bias"] = torch.randn(h, generator=generator)
    note = {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn.to_k": 2.0}, "transformer.use_rslora": True}
    save_file(peft, folder / "peft.safetensors", {"lora_adapter_metadata": json.dumps(note)})


_PLAIN, _FOLDED = _transformer(), _transformer(True)


def _read_lora(path: Path) -> None:
    for base in (_PLAIN, _FOLDED):
        with TensorFile(path, "LoRA") as file:
            modules = match_lora(file, base, path.name)
            merged = Merged(Dequantized(base), modules, 0.5, torch.ones(1, _SIZE.hidden))
            for name in merged:
                if name.rpartition(".")[0] in modules:
                    require(merged[name].shape == base[name].shape, f"'{name}' keeps its shape")


# -- VAE and prompt cache -----------------------------------------------------------------------------------


def _write_vae(folder: Path) -> None:
    save_file(_vae(), folder / "ae.safetensors")


def _read_vae(path: Path) -> None:
    with TensorFile(path, "VAE") as file:
        check_vae(file, "VAE")
        for name in file:
            require(file[name].shape == file.meta(name).shape, f"'{name}' as large as its header says")


def _write_prompt_cache(folder: Path) -> None:
    arrays = {"embeds": np.ones((4, _LLM), np.float32), "masks": np.array([1, 1, 0, 0])}
    np.savez(folder / "stored.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / "cache.safetensors")
    np.savez(folder / "pickled.npz", embeds=np.array([{}]), masks=arrays["masks"])
    write_lying_npz(folder / "vast.npz", {"embeds": (2**20, 2**20), "masks": (2**20,)})


def write_lying_npz(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """An archive of float32 arrays whose headers promise these shapes and which hold sixteen numbers each."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in shapes.items():
            out = io.BytesIO()
            np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", out.getvalue() + bytes(64))


def _read_prompt_cache(path: Path) -> None:
    embeds, mask = read_prompt_cache(path)
    require(embeds.ndim == 2 and mask.shape == embeds.shape[:1], "one mask value for each token")
    require(bool(embeds.isfinite().all()) and bool(mask.any()), "finite numbers and a real token")


TARGETS = (
    Target("checkpoint", _write_checkpoint, _read_checkpoint,
           ("plain.safetensors", "folded.safetensors", "int8.safetensors"), ("checkpoint", "conditioning")),
    Target("transformer", _write_base, _read_base, ("base.safetensors", "scaled.safetensors"), ("transformer",)),
    Target("LoRA", _write_lora, _read_lora, ("kohya.safetensors", "peft.safetensors"), ("LoRA",)),
    Target("VAE", _write_vae, _read_vae, ("ae.safetensors",), ("VAE",)),
    Target("prompt cache", _write_prompt_cache, _read_prompt_cache, ("stored.npz", "packed.npz", "cache.safetensors"),
           ("prompt cache",), liars=("pickled.npz", "vast.npz")),
)  # fmt: skip
