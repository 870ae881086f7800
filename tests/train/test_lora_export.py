"""Exported LoRAs: the real readers of each format see the same change, and converting there and back changes
nothing.
"""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fe2e_core.folding import CONSTANT, fold
from fe2e_core.keymaps import flux_to_diffusers
from fe2e_core.lora import LoraModule, Merged, match_lora
from tests.harness.golden import GoldenConfig, dit_weights, lora_weights
from train.convert import main, read_lora
from train.lora_export import (
    LoraNotes,
    constant_changes,
    rank_one,
    rank_one_loss,
    tensors_digest,
    to_diffusers,
    to_kohya,
    with_rank_one,
    write_kohya,
    write_peft,
)

WIDTH = 128
CONFIG = GoldenConfig(hidden=WIDTH, depth=1, single=1, ctx=32, rank=4, alpha=3.0, lora=True)
NOTES = LoraNotes(
    "test", base="step1x.safetensors", base_sha256="ab", data="cd", height=768, width=1024, steps=7, seed=0
)


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in dit_weights(CONFIG, connector=False).items()}


@pytest.fixture(scope="module")
def modules(base) -> dict[str, LoraModule]:
    """Every Linear of every block, one bias and one layer with nothing but a bias."""
    modules = match_lora({k: v.float() for k, v in lora_weights(CONFIG).items()}, base)
    generator = torch.Generator().manual_seed(0)
    name = "double_blocks.0.img_attn.qkv"
    modules[name] = LoraModule(
        modules[name].down, modules[name].up, 3.0, torch.randn(3 * WIDTH, generator=generator)
    )
    name = "final_layer.adaLN_modulation.1"
    modules[name] = LoraModule(None, None, 0.0, torch.randn(2 * WIDTH, generator=generator))
    return modules


def build(weights: dict[str, torch.Tensor]) -> FluxTransformer2DModel:
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=1,
            joint_attention_dim=32, pooled_projection_dim=768,
        )  # fmt: skip
    model.load_state_dict(
        {k: v.clone() for k, v in flux_to_diffusers(weights).items()}, assign=True, strict=True
    )
    return model.eval()


@torch.no_grad()
def predict(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(
        hidden_states=torch.randn(1, 6, 64, generator=generator), img_ids=torch.zeros(6, 3),
        encoder_hidden_states=torch.randn(1, 3, 32, generator=generator), txt_ids=torch.zeros(3, 3),
        timestep=torch.ones(1), pooled_projections=torch.randn(1, 768, generator=generator), return_dict=False,
    )[0]  # fmt: skip


def test_diffusers_loads_it_and_predicts_what_the_merged_weights_predict(base, modules, tmp_path):
    expected = predict(build(dict(Merged(base, modules))))
    plain = predict(build(base))
    assert float((expected - plain).abs().max()) > 0.1
    model = build(base)
    save_file(to_diffusers(modules), tmp_path / "lora.safetensors")
    model.load_lora_adapter(load_file(tmp_path / "lora.safetensors"), prefix="transformer")
    torch.testing.assert_close(predict(model), expected, atol=1e-3, rtol=0)
    assert float((predict(model) - expected).abs().max()) < 0.01 * float((expected - plain).abs().max())


def test_peft_loads_it_and_predicts_what_the_merged_weights_predict(base, modules, tmp_path):
    from peft import PeftModel

    mixed = dict(modules)
    wide = mixed["single_blocks.0.linear2"]
    mixed["single_blocks.0.linear2"] = LoraModule(wide.down[:2], wide.up[:, :2], 1.0)
    write_peft(tmp_path / "peft", mixed, NOTES)
    model = PeftModel.from_pretrained(build(base), tmp_path / "peft")
    torch.testing.assert_close(predict(model), predict(build(dict(Merged(base, mixed)))), atol=1e-3, rtol=0)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_there_and_back(base, modules, tmp_path, form):
    first, second, third = tmp_path / "a.safetensors", tmp_path / "b", tmp_path / "c.safetensors"
    write_kohya(first, modules, NOTES)
    assert main([str(first), str(second), "--to", form]) == 0
    assert main([str(second), str(third), "--to", "kohya"]) == 0
    before, after = Merged(base, read_lora(first)[0]), Merged(base, read_lora(third)[0])
    for key in base:
        torch.testing.assert_close(after[key], before[key], atol=1e-6, rtol=1e-6)
    if form == "diffusers":
        with safe_open(third, "pt") as file:
            metadata = file.metadata()
        assert metadata["modelspec.title"] == "test"
        assert metadata["fe2e.base_sha256"] == "ab"
        assert metadata["modelspec.hash_sha256"] == "0x" + tensors_digest(load_file(third))
    with pytest.raises(FileExistsError, match="is not overwritten"):
        main([str(first), str(third), "--to", "kohya"])


def test_kohya_export_has_the_released_keys_and_metadata(modules, tmp_path):
    write_kohya(tmp_path / "a.safetensors", modules, NOTES, torch.bfloat16)
    tensors = load_file(tmp_path / "a.safetensors")
    assert {k for k in tensors if not k.endswith((".diff_b", ".alpha"))} == {
        k for k in lora_weights(CONFIG) if not k.endswith(".alpha")
    }
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].dtype == torch.bfloat16
    assert tensors["lora_unet_final_layer_adaLN_modulation_1.diff_b"].dtype == torch.float32
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_network_alpha"] == "3.0"
    assert metadata["ss_new_sd_model_hash"] == "ab"
    assert metadata["modelspec.resolution"] == "1024x768"
    assert metadata["fe2e.quantization"] == "log"


def test_parts_of_a_fused_layer_become_themselves_again(base):
    generator = torch.Generator().manual_seed(3)
    lora = {}
    for target, rank in (("to_q", 2), ("to_k", 3), ("to_v", 1)):
        lora[f"transformer.transformer_blocks.0.attn.{target}.lora_A.weight"] = torch.randn(
            rank, WIDTH, generator=generator
        )
        lora[f"transformer.transformer_blocks.0.attn.{target}.lora_B.weight"] = torch.randn(
            WIDTH, rank, generator=generator
        )
    again = to_diffusers(match_lora(lora, base))
    assert again.keys() == lora.keys()
    assert all(torch.equal(again[key], lora[key]) for key in lora)


def test_changes_of_constants_are_exact_as_diff_b(base, tmp_path):
    silu_vec = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(4))
    before = fold(base, silu_vec)
    after = dict(before)
    names = [f"double_blocks.0.img_mod.lin.{CONSTANT}", f"final_layer.adaLN_modulation.1.{CONSTANT}"]
    for i, name in enumerate(names):
        after[name] = before[name] + 1e-3 * torch.randn(
            before[name].shape, generator=torch.Generator().manual_seed(i)
        )
    changes = constant_changes(before, after)
    assert {f"{m}.{CONSTANT}" for m in changes} == set(names)
    save_file(to_kohya(changes), tmp_path / "a.safetensors")
    again = Merged(before, read_lora(tmp_path / "a.safetensors")[0])
    for name in names:
        torch.testing.assert_close(again[name], after[name], atol=1e-7, rtol=0)
    # and on the unfolded base the layers' outputs change by the same
    unfolded = fold(dict(Merged(base, changes)), silu_vec)
    for name in names:
        torch.testing.assert_close(unfolded[name], after[name], atol=1e-5, rtol=0)


def test_rank_one_is_exact_until_it_is_rounded(base, tmp_path, capsys):
    generator = torch.Generator().manual_seed(5)
    silu_vec = torch.randn(1, WIDTH, generator=generator)
    module = "single_blocks.0.modulation.lin"
    weight = base[f"{module}.weight"]
    change = 1e-3 * torch.randn(3 * WIDTH, generator=generator)
    lora = rank_one(change, silu_vec)
    torch.testing.assert_close(lora.delta() @ silu_vec[0], change, atol=1e-8, rtol=1e-4)
    assert float(lora.up.norm() / lora.down.norm()) == pytest.approx(1 / float(silu_vec.norm()), rel=1e-4)
    assert rank_one_loss(weight, change, silu_vec) < 1e-3
    small, large = (rank_one_loss(weight.bfloat16(), factor * change, silu_vec) for factor in (1.0, 50.0))
    assert small > 0.3
    assert large < small / 5

    both = with_rank_one(
        {module: LoraModule(torch.ones(2, WIDTH), torch.ones(3 * WIDTH, 2), 1.0, change)}, silu_vec
    )[module]
    expected = (0.5 * torch.ones(3 * WIDTH, 2) @ torch.ones(2, WIDTH)) @ silu_vec[0] + change
    torch.testing.assert_close(both.delta() @ silu_vec[0], expected, atol=1e-4, rtol=1e-4)
    assert both.diff_b is None

    save_file(to_kohya({module: LoraModule(None, None, 0.0, change)}), tmp_path / "a.safetensors")
    save_file({"conditioning.silu_vec": silu_vec}, tmp_path / "packed.safetensors")
    save_file({k: v.bfloat16() for k, v in base.items()}, tmp_path / "base.safetensors")
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--to", "diffusers",
                 "--rank-one", str(tmp_path / "packed.safetensors"), "--base", str(tmp_path / "base.safetensors")]) == 0  # fmt: skip
    assert f"{small:.1%} in '{module}'" in capsys.readouterr().out
    written = load_file(tmp_path / "b.safetensors")
    assert sorted(written) == [
        f"transformer.single_transformer_blocks.0.norm.linear.lora_{x}.weight" for x in "AB"
    ]


def test_convert_says_what_is_wrong(modules, tmp_path):
    save_file({"lora_te1_x.lora_down.weight": torch.ones(1, 1)}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="belong to no layer"):
        main([str(tmp_path / "text.safetensors"), str(tmp_path / "b"), "--to", "kohya"])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        main([str(tmp_path / "none.safetensors"), str(tmp_path / "b"), "--to", "kohya"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        main([str(tmp_path / "empty"), str(tmp_path / "b"), "--to", "kohya"])
    write_kohya(tmp_path / "a.safetensors", modules, NOTES)
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "b"), "--to", "peft", "--dry-run"]) == 0
    assert not (tmp_path / "b").exists()
    only_bias = {"img_in": LoraModule(None, None, 0.0, torch.ones(WIDTH))}
    with pytest.raises(ValueError, match="only the bias of 'img_in'"):
        to_diffusers(only_bias)


def test_peft_config_is_json_that_peft_wrote_the_shape_of(modules, tmp_path):
    write_peft(tmp_path / "p", modules, NOTES)
    about = json.loads((tmp_path / "p/adapter_config.json").read_text())
    assert about["peft_type"] == "LORA"
    assert about["r"] == about["lora_alpha"] == 4
    assert about["lora_bias"] is True
    assert "transformer_blocks.0.attn.to_q" in about["target_modules"]
