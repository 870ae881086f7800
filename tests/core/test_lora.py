"""LoRAs in all formats lead to the same change of the same weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from fe2e_core.folding import CONSTANT, fold
from fe2e_core.keymaps import diffusers_modules, flux_to_diffusers, linear_modules, row_split
from fe2e_core.lora import Merged, match_lora, merge, merge_bias
from fe2e_core.tensorfile import TensorFile
from tests.harness.golden import GoldenConfig, dit_weights, lora_weights

WIDTH = 128
CONFIG = GoldenConfig(hidden=WIDTH, depth=1, single=1, ctx=32, rank=4, alpha=2.0, lora=True)


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in dit_weights(CONFIG, connector=False).items()}


def diffusers_lora(base, prefix="transformer.", rank=3, seed=0, only=None) -> dict[str, torch.Tensor]:
    """A LoRA of its own on every Linear of every block, in diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in linear_modules(1, 1):
        if "blocks" not in module and module != "final_layer.adaLN_modulation.1":
            continue
        rows = row_split(module, base[f"{module}.weight"].shape[0], WIDTH)
        for target, size in zip(diffusers_modules(module), rows, strict=True):
            if only is None or target in only:
                tensors[f"{prefix}{target}.lora_A.weight"] = torch.randn(
                    rank, base[f"{module}.weight"].shape[1], generator=generator
                )
                tensors[f"{prefix}{target}.lora_B.weight"] = torch.randn(size, rank, generator=generator)
    return tensors


def merged(base, lora, **kwargs) -> dict[str, torch.Tensor]:
    return dict(Merged(base, match_lora(lora, base, **kwargs)))


def expected_diffusers(base, lora, prefix, scale) -> dict[str, torch.Tensor]:
    """The same LoRA added to diffusers' own weights, layer by layer."""
    weights = dict(flux_to_diffusers(base))
    for key in lora:
        if key.endswith("lora_A.weight"):
            layer = key.removeprefix(prefix).removesuffix(".lora_A.weight")
            weights[f"{layer}.weight"] = (
                weights[f"{layer}.weight"] + scale * lora[key.replace("lora_A", "lora_B")] @ lora[key]
            )
    return weights


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", ""])
def test_diffusers_and_peft_names_give_the_same_weights_as_in_diffusers(base, prefix):
    lora = diffusers_lora(base, prefix)
    ours = flux_to_diffusers(merged(base, lora))
    theirs = expected_diffusers(base, lora, prefix, 1.0)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-5)
    assert not torch.equal(ours["norm_out.linear.weight"], flux_to_diffusers(base)["norm_out.linear.weight"])


def test_alpha_comes_from_diffusers_metadata(base, tmp_path):
    lora = diffusers_lora(base)
    values = {"transformer.lora_alpha": 6, "transformer.r": 3, "transformer.alpha_pattern": {}}
    save_file(lora, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(values)})
    with TensorFile(tmp_path / "a.safetensors", "LoRA") as file:
        ours = flux_to_diffusers(merged(base, file, name="a"))
    theirs = expected_diffusers(base, lora, "transformer.", 2.0)
    torch.testing.assert_close(
        ours["transformer_blocks.0.attn.to_k.weight"], theirs["transformer_blocks.0.attn.to_k.weight"]
    )
    pattern = {"lora_adapter_metadata": json.dumps({"lora_alpha": 3, "alpha_pattern": {"attn.to_k": 6}})}
    ours = flux_to_diffusers(merged(base, lora, metadata=pattern))
    torch.testing.assert_close(
        ours["transformer_blocks.0.attn.to_k.weight"], theirs["transformer_blocks.0.attn.to_k.weight"]
    )
    once = expected_diffusers(base, lora, "transformer.", 1.0)
    torch.testing.assert_close(
        ours["transformer_blocks.0.attn.to_v.weight"], once["transformer_blocks.0.attn.to_v.weight"]
    )


def test_a_lora_on_one_part_of_a_fused_projection_leaves_the_others(base):
    lora = diffusers_lora(
        base, only=("single_transformer_blocks.0.attn.to_v", "transformer_blocks.0.attn.to_k")
    )
    ours, before = flux_to_diffusers(merged(base, lora)), flux_to_diffusers(base)
    changed = {key for key in before if not torch.equal(ours[key], before[key])}
    assert changed == {
        "single_transformer_blocks.0.attn.to_v.weight",
        "transformer_blocks.0.attn.to_k.weight",
    }


def test_a_split_kohya_lora_is_put_together_again(base):
    kohya = match_lora(lora_weights(CONFIG), base)
    module = "double_blocks.0.img_attn.qkv"
    parts = kohya[module].up.split(row_split(module, 3 * WIDTH, WIDTH))
    lora = {}
    for target, up in zip(diffusers_modules(module), parts, strict=True):
        lora |= {
            f"{target}.lora_A.weight": kohya[module].down,
            f"{target}.lora_B.weight": up,
            f"{target}.alpha": torch.tensor(CONFIG.alpha),
        }
    again = match_lora(lora, base)[module]
    assert torch.equal(again.up, kohya[module].up)
    assert torch.equal(again.down, kohya[module].down)
    assert again.alpha == CONFIG.alpha


def test_power_of_two_scales_keep_bf16_factors_exactly(base):
    lora = {k: v.bfloat16() for k, v in diffusers_lora(base, rank=4).items()}
    modules = match_lora(lora, base, metadata={"lora_adapter_metadata": json.dumps({"lora_alpha": 2})})
    fused = modules["double_blocks.0.txt_attn.qkv"]
    assert fused.up.dtype == torch.bfloat16
    assert torch.equal(
        fused.up[:WIDTH, :4] * 2, lora["transformer.transformer_blocks.0.attn.add_q_proj.lora_B.weight"]
    )


def test_changes_of_biases(base):
    module = "double_blocks.0.img_mod.lin"
    change = torch.linspace(-1, 1, 6 * WIDTH)
    lora = {"lora_unet_double_blocks_0_img_mod_lin.diff_b": change}
    after = merged(base, lora)
    torch.testing.assert_close(after[f"{module}.bias"], base[f"{module}.bias"] + change)
    assert torch.equal(after[f"{module}.weight"], base[f"{module}.weight"])

    halves = {"transformer.norm_out.linear.diff_b": torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH)])}
    ours = flux_to_diffusers(merged(base, halves))
    torch.testing.assert_close(
        ours["norm_out.linear.bias"],
        flux_to_diffusers(base)["norm_out.linear.bias"] + halves["transformer.norm_out.linear.diff_b"],
    )

    scaled = diffusers_lora(base, only=("proj_out", "transformer_blocks.0.ff.net.2"))
    scaled["transformer.transformer_blocks.0.ff.net.2.lora_B.bias"] = torch.ones(WIDTH)
    scaled["transformer.transformer_blocks.0.ff.net.2.alpha"] = torch.tensor(1.5)
    after = merged(base, scaled)
    torch.testing.assert_close(
        after["double_blocks.0.img_mlp.2.bias"], base["double_blocks.0.img_mlp.2.bias"] + 0.5
    )


def test_on_a_folded_transformer_it_changes_the_constants_by_the_same(base):
    silu_vec = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(5))
    lora = {k: v.float() for k, v in lora_weights(CONFIG).items()}
    lora["lora_unet_single_blocks_0_modulation_lin.diff_b"] = torch.full((3 * WIDTH,), 0.25)
    modules = match_lora(lora, base)
    folded_after = fold(dict(Merged(base, modules)), silu_vec)
    folded = fold(base, silu_vec)
    assert match_lora(lora, folded).keys() == modules.keys()
    after = Merged(folded, modules, silu_vec=silu_vec)
    name = f"single_blocks.0.modulation.lin.{CONSTANT}"
    assert not torch.allclose(folded[name], folded_after[name], atol=1e-2)
    for key in folded_after:
        torch.testing.assert_close(after[key], folded_after[key], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="folded"):
        Merged(folded, modules)[name]


def test_strength_scales_everything(base):
    lora = {
        "lora_unet_img_in.lora_down.weight": torch.ones(1, 64),
        "lora_unet_img_in.lora_up.weight": torch.ones(WIDTH, 1),
        "lora_unet_img_in.diff_b": torch.ones(WIDTH),
    }
    module = match_lora(lora, base)["img_in"]
    torch.testing.assert_close(merge(base["img_in.weight"], module, -0.5), base["img_in.weight"] - 0.5)
    torch.testing.assert_close(merge_bias(base["img_in.bias"], module, 2.0), base["img_in.bias"] + 2)


def test_files_that_do_not_fit_are_named(base):
    lora = diffusers_lora(base)
    with pytest.raises(ValueError, match="belong to no layer"):
        match_lora(
            lora | {"transformer.transformer_blocks.7.attn.to_q.lora_A.weight": torch.ones(1, 1)}, base
        )
    half = {k: v for k, v in lora.items() if not k.endswith("to_q.lora_B.weight")}
    with pytest.raises(ValueError, match=r"lacks .*lora_B.*attn\.to_q"):
        match_lora(half, base)
    twice = lora | {
        "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.ones(1, WIDTH),
        "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.ones(7 * WIDTH, 1),
    }
    with pytest.raises(ValueError, match="under two names"):
        match_lora(twice, base)
    with pytest.raises(ValueError, match="metadata"):
        match_lora(lora, base, metadata={"lora_adapter_metadata": "[1]"})
    wrong = lora | {
        "transformer.proj_out.lora_A.weight": torch.ones(1, WIDTH),
        "transformer.proj_out.lora_B.weight": torch.ones(64, 1),
        "transformer.proj_out.diff_b": torch.ones(3),
    }
    with pytest.raises(ValueError, match="change of the bias"):
        match_lora(wrong, base)
    with pytest.raises(ValueError, match="no tensors"):
        match_lora({}, base)


def test_a_partial_lora_is_noticed_and_named(caplog):
    """A layer changed in some blocks and not in the others: said, with the first that are missing."""
    base = [f"{kind}_blocks.{i}.{layer}.weight" for i in range(3) for kind, layer in (("double", "img_attn.qkv"), ("single", "linear1"))]
    full = {f"lora_unet_double_blocks_{i}_img_attn_qkv.lora_{part}.weight": torch.ones(2, 2) for i in range(3) for part in ("down", "up")}
    match_lora(full, base, "whole.safetensors")
    assert caplog.text == ""  # an attention-only LoRA is no partial one
    for part in ("down", "up"):
        del full[f"lora_unet_double_blocks_1_img_attn_qkv.lora_{part}.weight"]
    match_lora(full, base, "partial.safetensors")
    assert "partial.safetensors" in caplog.text
    assert "double_blocks.1.img_attn.qkv" in caplog.text
