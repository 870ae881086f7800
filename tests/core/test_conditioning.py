"""The constant conditioning against the golden files."""

from __future__ import annotations

import pytest
import torch

from fe2e_core.conditioning import constant_conditioning
from tests.harness.golden import dit_weights, load_golden


@pytest.fixture(scope="module")
def golden():
    return load_golden("base")


def test_connector_equals_the_reference(golden):
    conditioning = constant_conditioning(dit_weights(golden.config), golden.tensors["embeds"], golden.tensors["masks"],
                                         golden.config.ctx_heads)
    torch.testing.assert_close(conditioning.context, golden.tensors["fp32.context"], atol=2e-5, rtol=0)
    torch.testing.assert_close(conditioning.pooled, golden.tensors["fp32.pooled"], atol=2e-5, rtol=0)


def test_padding_rows_of_the_context_are_identical(golden):
    """What token merging relies on: padding embeds are not equal by themselves, so only equal rows may merge."""
    embeds = golden.tensors["embeds"].clone()
    embeds[golden.config.valid:] = embeds[golden.config.valid]
    context = constant_conditioning(dit_weights(golden.config), embeds, golden.tensors["masks"], 3).context[0]
    padding = context[golden.config.valid:]
    assert torch.equal(padding, padding[:1].expand_as(padding))
    assert len(context.unique(dim=0)) == golden.config.valid + 1


def test_a_cache_of_another_width_is_refused(golden):
    with pytest.raises(ValueError, match="prompt cache: embeddings are 32 wide, this transformer's connector takes 64"):
        constant_conditioning(dit_weights(golden.config), torch.zeros(4, 32), torch.ones(4))


def test_a_transformer_without_connector_is_refused(golden):
    with pytest.raises(ValueError, match="connector.S.input_embedder.weight"):
        constant_conditioning(dit_weights(golden.config, connector=False), golden.tensors["embeds"], golden.tensors["masks"])


def test_v1_1_takes_the_mean_as_it_is(golden):
    """Step1X-Edit v1.1 lacks `scale_factor`, which is the same as one of zero."""
    weights = dit_weights(golden.config)
    inputs = (golden.tensors["embeds"], golden.tensors["masks"], golden.config.ctx_heads)
    zero = constant_conditioning(weights | {"connector.scale_factor": torch.zeros(1)}, *inputs)
    del weights["connector.scale_factor"]
    without = constant_conditioning(weights, *inputs)
    assert torch.equal(without.pooled, zero.pooled)
    assert torch.equal(without.context, zero.context)
    assert not torch.allclose(without.pooled, golden.tensors["fp32.pooled"], atol=1e-2)


@pytest.mark.parametrize("name", ["connector.S.t_embedder.mlp.2.weight", "connector.global_proj_out.bias", "connector.scale_factor",
                                  "connector.S.individual_token_refiner.blocks.1.self_attn_qkv.weight"])
def test_a_damaged_connector_is_refused_by_name(golden, name):
    weights = dit_weights(golden.config)
    inputs = (golden.tensors["embeds"], golden.tensors["masks"])
    with pytest.raises(ValueError, match=rf"'{name}' is \(.*expected"):
        constant_conditioning(weights | {name: weights[name][..., None]}, *inputs, 3)
    del weights[name]
    if name != "connector.scale_factor":
        with pytest.raises(ValueError, match=rf"'{name}' is missing"):
            constant_conditioning(weights, *inputs, 3)


@pytest.mark.parametrize("heads", [0, 7, 10**9])
def test_a_number_of_heads_that_does_not_divide_the_width_is_refused(golden, heads):
    with pytest.raises(ValueError, match=rf"{heads} heads .* divisor"):
        constant_conditioning(dit_weights(golden.config), golden.tensors["embeds"], golden.tensors["masks"], heads)
