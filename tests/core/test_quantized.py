"""Eight-bit weights in ComfyUI's format: what is written, what is read, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fe2e_core.assembly import AS_STORED, Assembled, Storage
from fe2e_core.lora import LoraModule, Merged
from fe2e_core.quantized import FORMATS, Dequantized, is_block_weight, marker, quantize
from tests.harness.golden import GoldenConfig, dit_weights

SMALL = GoldenConfig(hidden=128, depth=1, single=1, ctx=32, ctx_heads=1, llm=16)
QKV = "double_blocks.0.img_attn.qkv"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {k: v for k, v in dit_weights(SMALL).items() if not k.startswith("connector.")}


@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 9999), format_=st.sampled_from(list(FORMATS)))
def test_rounding_is_within_half_a_step_at_any_magnitude(exponent, seed, format_):
    weight = torch.randn(8, 33, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    made = quantize(weight, format_)
    error, largest = (made.dequantize() - weight).abs(), FORMATS[format_][1]
    if format_ == "int8_tensorwise":
        assert made.scale.shape == (8, 1)
        assert (error <= made.scale * 0.5 * (1 + 1e-4)).all()
    else:
        digits, smallest = (3, 2.0**-9) if format_ == "float8_e4m3fn" else (2, 2.0**-16)
        step = torch.maximum(weight.abs() * 2.0**-digits, made.scale * smallest)
        assert made.scale.shape == ()
        assert (error <= step * 0.5 * (1 + 1e-4)).all()
    torch.testing.assert_close(made.data.float().abs().max(), torch.tensor(largest), rtol=0, atol=0)


def test_a_weight_of_zeros_stays_zero():
    for format_ in FORMATS:
        made = quantize(torch.zeros(4, 4), format_)
        assert (made.dequantize() == 0).all()
        assert bool(made.scale.isfinite().all())


def test_numbers_that_are_not_finite_are_refused():
    weight = torch.ones(4, 4)
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, "float8_e4m3fn")


def test_only_the_linears_of_blocks_are_quantised(weights):
    found = {name for name in weights if is_block_weight(name)}
    assert len(found) == 10 + 3  # modulations included, for a transformer that is not folded
    assert not any("norm" in name or name.startswith(("img_in", "final_layer")) for name in found)
    folded = Assembled(weights, torch.ones(1, 128), Storage(torch.bfloat16, "float8_e4m3fn"))
    assert sum(name.endswith(".comfy_quant") for name in folded) == 8 + 2
    assert not any(name.endswith("lin.weight") for name in folded)


@pytest.mark.parametrize("format_", list(FORMATS))
def test_what_is_announced_is_what_comes_and_it_reads_back(weights, format_):
    stored = Assembled(weights, torch.ones(1, 128), Storage(torch.bfloat16, format_))
    for name in stored:
        assert stored[name].shape == stored.meta(name).shape, name
        assert stored[name].dtype == stored.meta(name).dtype, name
    # In the order of the file, and a scale asked for alone, are the same.
    data, scale = stored[f"{QKV}.weight"], stored[f"{QKV}.weight_scale"]
    assert torch.equal(stored[f"{QKV}.weight_scale"], scale)
    assert json.loads(bytes(stored[f"{QKV}.comfy_quant"].tolist())) == {"format": format_}
    plain = Dequantized(stored)
    assert set(plain) == {n for n in stored if not n.endswith(("weight_scale", "comfy_quant"))}
    torch.testing.assert_close(plain[f"{QKV}.weight"], data.float() * scale, rtol=0, atol=0)
    again = Assembled(plain, None, Storage(torch.bfloat16, AS_STORED))
    assert set(again) == set(stored)
    for name in stored:
        assert torch.equal(bits(again[name]), bits(stored[name])), name


def test_three_ways_of_saying_scaled_fp8_are_read_alike(weights):
    made = quantize(weights[f"{QKV}.weight"], "float8_e4m3fn")
    rest = {k: v for k, v in weights.items() if k != f"{QKV}.weight"}
    new = Dequantized({**rest, **{f"{QKV}.{k}": v for k, v in made.parts().items()}})
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {QKV: {"format": "float8_e4m3fn"}}})}
    noted = Dequantized({**rest, f"{QKV}.weight": made.data, f"{QKV}.weight_scale": made.scale.reshape(1)}, metadata)
    old = Dequantized({**rest, f"{QKV}.weight": made.data, f"{QKV}.scale_weight": made.scale, f"{QKV}.scale_input": torch.ones(()),
                       "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)})
    for found in (new, noted, old):
        assert set(found) == set(weights)
        assert torch.equal(found[f"{QKV}.weight"], made.dequantize())
        assert torch.equal(found.quantized(QKV).data.view(torch.uint8), made.data.view(torch.uint8))
    assert old.quantized(QKV).input_scale == 1


def test_a_plain_cast_is_read_as_it_is(weights):
    cast = Dequantized({k: v.to(torch.float8_e4m3fn) for k, v in weights.items()})
    assert torch.equal(cast[f"{QKV}.weight"], weights[f"{QKV}.weight"].to(torch.float8_e4m3fn).float())
    assert torch.equal(cast[f"{QKV}.bias"], weights[f"{QKV}.bias"].to(torch.float8_e4m3fn).float())
    kept = Assembled(cast, None, Storage(torch.bfloat16, AS_STORED))
    assert torch.equal(kept[f"{QKV}.weight"].float(), cast[f"{QKV}.weight"])
    assert kept[f"{QKV}.weight_scale"] == 1
    assert kept["img_in.weight"].dtype == torch.bfloat16


def test_a_lora_is_merged_before_rounding(weights):
    base = Dequantized(Assembled(weights, None, Storage(torch.bfloat16, "float8_e4m3fn")))
    lora = LoraModule(torch.randn(4, 128), torch.randn(384, 4) * 0.05, 4.0)
    merged = Merged(base, {QKV: lora}, 0.7)
    stored = Assembled(merged, None, Storage(torch.bfloat16, AS_STORED))
    wanted = quantize(base[f"{QKV}.weight"] + lora.delta(0.7), "float8_e4m3fn")
    torch.testing.assert_close(Dequantized(stored)[f"{QKV}.weight"], wanted.dequantize(), rtol=0, atol=1e-7)
    # what it does not change stays as it was, to the bit
    other = "single_blocks.0.linear1"
    assert torch.equal(stored[f"{other}.weight"].view(torch.uint8), base.quantized(other).data.view(torch.uint8))


@pytest.mark.parametrize(("note", "message"), [
    ({"format": "nvfp4"}, "nvfp4"), ({"format": "int8_tensorwise", "convrot": True}, "convrot"), ({}, "quantised as"),
])
def test_formats_that_are_not_ours_are_refused(weights, note, message):
    tensors = {**weights, f"{QKV}.comfy_quant": torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=message):
        Dequantized(tensors)


def test_damaged_notes_and_missing_scales_are_refused(weights):
    with pytest.raises(ValueError, match="no scale"):
        Dequantized({**weights, f"{QKV}.comfy_quant": marker("float8_e4m3fn")})
    with pytest.raises(ValueError, match="cannot be read"):
        Dequantized({**weights, f"{QKV}.comfy_quant": torch.tensor([1, 2, 3], dtype=torch.uint8)})
    with pytest.raises(ValueError, match="cannot be read"):
        Dequantized(weights, {"_quantization_metadata": "{"})
    with pytest.raises(ValueError, match="marker says"):
        Dequantized({**weights, f"{QKV}.comfy_quant": marker("float8_e4m3fn"), f"{QKV}.weight_scale": torch.ones(())}).quantized(QKV)
