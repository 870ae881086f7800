"""Eight-bit models in ComfyUI: packed ones, and the bases that users have (fp16, fp8 cast, fp8 scaled)."""

from __future__ import annotations

from pathlib import Path

import comfy.quant_ops
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fe2e_core.assembly import Assembled, Storage
from tests.harness.golden import dit_weights, load_golden, lora_weights, vae_weights
from tests.harness.inprocess import pack_module
from train.pack import STORAGES, Parts, pack

#: Relative error (root mean square) of depth and normal latent against float32, measured, and a quarter more. The
#: golden network is smaller than the release and its weights are noise, which quantises worse than trained weights.
MEASURED = {
    ("base", "fp8_e4m3fn"): (0.0627, 0.0472),
    ("lora", "fp8_e4m3fn"): (0.0615, 0.0519),
    ("base", "int8"): (0.0282, 0.0180),
    ("lora", "int8"): (0.0265, 0.0203),
}
#: The same network cast to fp8 without scales.
PLAIN_CAST = (0.1273, 0.0959)
_NO_INT8 = pytest.mark.skipif(
    "int8_tensorwise" not in comfy.quant_ops.QUANT_ALGOS, reason="this ComfyUI has no eight-bit integers"
)
INT8 = pytest.param("int8", marks=_NO_INT8)
QKV = "double_blocks.0.img_attn.qkv"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The golden network in every form a base comes in."""
    folder, golden = tmp_path_factory.mktemp("quantised"), load_golden("base")
    weights, heads = dit_weights(golden.config), {"connector_heads": str(golden.config.ctx_heads)}
    connector = {k: v for k, v in weights.items() if k.startswith("connector.")}
    save_file(weights, folder / "bf16.safetensors", heads)
    save_file({k: v.half() for k, v in weights.items()}, folder / "fp16.safetensors", heads)
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in weights.items()}, folder / "cast.safetensors", heads)
    scaled = Assembled(weights, None, Storage(torch.bfloat16, "float8_e4m3fn"))
    save_file({**dict(scaled), **connector}, folder / "scaled.safetensors", heads)
    save_file({k: v.contiguous() for k, v in vae_weights(golden.config).items()}, folder / "ae.safetensors")
    save_file(lora_weights(load_golden("lora").config), folder / "LDRN.safetensors")
    np.savez(folder / "no_info.npz", embeds=golden.tensors["embeds"].numpy(), masks=golden.tensors["masks"].numpy())
    return folder


def load(files: Path, base: str, dtype: str = "default", lora: bool = False):
    with torch.inference_mode():  # as ComfyUI runs every node
        return pack_module("nodes.loading").load_parts(
            str(files / f"{base}.safetensors"), str(files / "LDRN.safetensors") if lora else None, 1.0,
            str(files / "ae.safetensors"), str(files / "no_info.npz"), dtype)


def errors(model, name: str) -> tuple[float, float]:
    tensors = load_golden(name).tensors
    with torch.inference_mode():
        found = pack_module("nodes.backend").transform(model, tensors["fp32.image_latent"])
    wanted = [tensors["fp32.depth_latent"], tensors["fp32.normal_latent"]]
    return tuple(float((f.cpu() - w).square().mean().sqrt() / w.square().mean().sqrt())
                 for f, w in zip(found, wanted, strict=True))


def weight(model) -> torch.Tensor:
    return model.patcher.model.diffusion_model.get_submodule(QKV).weight


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", INT8])
@pytest.mark.parametrize("name", ["base", "lora"])
def test_error_of_eight_bits_is_what_was_measured(files, name, dtype, record_property):
    model = load(files, "bf16", dtype, lora=name == "lora")
    assert isinstance(weight(model).data, comfy.quant_ops.QuantizedTensor)
    found = errors(model, name)
    record_property("error", found)
    for error, measured in zip(found, MEASURED[name, dtype], strict=True):
        assert error <= 1.25 * measured
    assert found[0] < 0.6 * PLAIN_CAST[0]


def test_an_fp16_base_is_as_good_as_its_weights(files):
    assert max(errors(load(files, "fp16"), "base")) < 1e-3
    assert max(errors(load(files, "fp16", lora=True), "lora")) < 6e-3  # the LoRA is rounded to fp16


def test_a_cast_fp8_base_loads_with_folding_and_lora(files):
    model = load(files, "cast")
    assert model.folded
    for found, measured in zip(errors(model, "base"), PLAIN_CAST, strict=True):
        assert found <= 1.25 * measured
    kept, expanded = load(files, "cast", "fp8_e4m3fn"), load(files, "cast", "fp32")
    assert isinstance(weight(kept).data, comfy.quant_ops.QuantizedTensor)
    # kept in fp8 nothing is lost besides what the file has lost: scale 1, the same numbers
    assert torch.equal(weight(kept).data.dequantize().float(), weight(expanded).data.float())
    assert max(errors(load(files, "cast", lora=True), "lora")) <= 1.25 * 0.1314


def test_a_scaled_fp8_base_is_run_as_stored(files):
    kept, expanded = load(files, "scaled"), load(files, "scaled", "fp32")
    assert isinstance(weight(kept).data, comfy.quant_ops.QuantizedTensor)
    assert kept.folded
    stored = load_file(files / "scaled.safetensors")
    assert torch.equal(weight(kept).data._qdata.view(torch.uint8), stored[f"{QKV}.weight"].view(torch.uint8))
    for a, b in zip(errors(kept, "base"), errors(expanded, "base"), strict=True):
        assert abs(a - b) < 1e-4
    assert max(errors(load(files, "scaled", lora=True), "lora")) < 0.1


@pytest.mark.parametrize("storage", ["fp8_scaled", INT8])
def test_a_packed_eight_bit_file_loads_back_identical(files, tmp_path, storage):
    out = tmp_path / f"{storage}.safetensors"
    pack(Parts(files / "bf16.safetensors", files / "ae.safetensors", files / "no_info.npz", None, files / "LDRN.safetensors"),
         out, STORAGES[storage])
    with torch.inference_mode():
        model = pack_module("nodes.loading").load_checkpoint(str(out), None, 1.0, "default")
    stored = load_file(out)
    assert torch.equal(weight(model).data._qdata.view(torch.uint8), stored[f"transformer.{QKV}.weight"].view(torch.uint8))
    direct = load(files, "bf16", "fp8_e4m3fn" if storage == "fp8_scaled" else "int8", lora=True)
    for a, b in zip(errors(model, "lora"), errors(direct, "lora"), strict=True):
        assert abs(a - b) < 1e-6
    assert model.info.lora == "LDRN.safetensors at 1"
    assert len(model.info.base_sha256) == 64
    # and is saved again as it is, by the node that saves what is loaded
    weights = pack_module("nodes.assembly").transformer_weights(model)
    assert torch.equal(weights[f"{QKV}.weight"].view(torch.uint8), stored[f"transformer.{QKV}.weight"].view(torch.uint8))
    assert set(weights) == {k.removeprefix("transformer.") for k in stored if k.startswith("transformer.")}


def test_a_packed_file_can_be_stored_otherwise(files, tmp_path):
    parts = Parts(files / "bf16.safetensors", files / "ae.safetensors", files / "no_info.npz", None, files / "LDRN.safetensors")
    pack(parts, tmp_path / "bf16.safetensors", STORAGES["bf16"], digests=False)
    pack(parts, tmp_path / "direct.safetensors", STORAGES["fp8_scaled"], digests=False)
    pack(Parts(checkpoint=tmp_path / "bf16.safetensors"), tmp_path / "again.safetensors", STORAGES["fp8_scaled"], digests=False)
    direct, again = load_file(tmp_path / "direct.safetensors"), load_file(tmp_path / "again.safetensors")
    assert set(direct) == set(again)
    for name, tensor in direct.items():
        assert torch.equal(tensor.float(), again[name].float()), name
