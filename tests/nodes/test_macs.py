"""The counted operations against torch's FLOP counter on ComfyUI's real Flux and VAE, and the benchmark's
contenders.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost, macs, models
from benchmarks.contenders import build, watch_text_tokens
from benchmarks.ours import OurProcedure
from benchmarks.reference_procedure import ReferenceProcedure
from benchmarks.sizes import TINY
from benchmarks.timing import Clock
from tests.harness.inprocess import pack_module

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def contenders():
    tensors, prompt = dict(models.transformer(TINY)), models.prompt(TINY)
    build_vae, vae = pack_module("nodes.backend").build_vae, dict(models.autoencoder(TINY))
    return (
        OurProcedure(TINY, tensors, build_vae(vae), prompt, "fp32", pack_module),
        ReferenceProcedure(TINY, tensors, build_vae(vae), prompt, torch.float32),
    )


def counted_flops(action) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        action()
    return counter.get_total_flops()


def test_transformer_of_any_number_of_tokens(contenders) -> None:
    _, reference = contenders
    flux = reference.patcher.model.diffusion_model
    for image, text in ((24, 6), (40, 24)):

        def forward(image: int = image, text: int = text) -> None:
            flux.forward_orig(
                img=torch.zeros(1, image, 64),
                img_ids=torch.zeros(1, image, 3),
                txt=torch.zeros(1, text, TINY.context_width),
                txt_ids=torch.zeros(1, text, 3),
                timesteps=torch.ones(1),
                y=torch.zeros(1, TINY.pooled),
                transformer_options={},
            )

        # The rotary table is an einsum over positions and axes: no part of the network's matrix products.
        table = counted_flops(
            lambda image=image, text=text: flux.pe_embedder(torch.zeros(1, image + text, 3))
        )
        assert counted_flops(forward) - table == 2 * macs.transformer_macs(TINY, image, text)


def test_the_autoencoder_both_ways(contenders) -> None:
    vae = contenders[0].model.vae.first_stage_model
    assert counted_flops(lambda: vae.encode(torch.zeros(1, 3, HEIGHT, WIDTH))) == 2 * macs.encoder_macs(
        TINY.vae_width, HEIGHT, WIDTH
    )
    latent = torch.zeros(1, 16, HEIGHT // 8, WIDTH // 8)
    assert counted_flops(lambda: vae.decode(latent)) == 2 * macs.decoder_macs(TINY.vae_width, HEIGHT, WIDTH)


def test_whole_pass_of_the_folded_and_merged_model(contenders) -> None:
    ours, _ = contenders
    tokens = macs.image_tokens(HEIGHT, WIDTH)
    with watch_text_tokens(ours) as seen:
        flops = counted_flops(
            lambda: ours.backend.transform(ours.model, torch.zeros(1, 16, HEIGHT // 8, WIDTH // 8))
        )
    assert seen[0] == TINY.distinct_tokens
    table = counted_flops(lambda: ours.transformer.pe_embedder(torch.zeros(1, tokens + seen[0], 3)))
    # Folding leaves the two small embedders of time and pooled vector in ComfyUI's forward; only modulation
    # goes.
    assert flops - table == 2 * macs.transformer_macs(TINY, tokens, seen[0], folded=True)


def test_both_procedures_give_the_same_latents(contenders) -> None:
    image = models.picture(HEIGHT, WIDTH)
    for ours, reference in zip(*(c.latents(image, Clock()) for c in contenders), strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=0)


def test_the_measured_stages_are_those_of_the_node(contenders) -> None:
    ours, _ = contenders
    image = models.picture(HEIGHT, WIDTH)
    log_depth, normal = ours(image, Clock())
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    with torch.inference_mode():
        geometry = ours.estimation.estimate(ours.model, image, mask, ours.sizing.fit(HEIGHT, WIDTH, "native"))
    torch.testing.assert_close(log_depth, geometry["log_depth"], atol=0, rtol=0)
    torch.testing.assert_close(normal, geometry["normal"], atol=0, rtol=0)


def test_ours_keeps_no_modulation_and_no_connector(contenders) -> None:
    ours, reference = contenders
    vae = macs.autoencoder_parameters(TINY.vae_width)
    constant = TINY.text_tokens * TINY.context_width + TINY.pooled + TINY.hidden
    assert ours.weight_bytes() == 4 * (macs.transformer_parameters(TINY, folded=True) + vae + constant)
    assert reference.weight_bytes() == 4 * (
        macs.transformer_parameters(TINY) + macs.connector_parameters(TINY) + vae
    )


def test_the_cost_tables_contenders_are_what_their_rows_say() -> None:
    image, found = models.picture(HEIGHT, WIDTH), {}
    for name, variant in cost.VARIANTS.items():
        with torch.inference_mode():  # as ComfyUI's nodes run, loaders too
            contender = build(variant, TINY, torch.float32, "cpu")
        found[name] = contender.latents(image, Clock())
        # scales and marks of eight-bit layers are all that the formula leaves out
        assert contender.weight_bytes() == pytest.approx(cost.counted_weights(variant, TINY, 4), rel=2e-3), name
        if not variant.reference:
            flops = counted_flops(lambda contender=contender: contender(image, Clock()))
            assert flops == pytest.approx(2 * cost.counted_macs(variant, TINY, (HEIGHT, WIDTH), True), rel=0.02), name
    for name, bound in (("reference", 1e-4), ("ours", 0.0), ("fp8", 0.2)):
        for theirs, folded in zip(found[name], found["folded"], strict=True):
            assert float((theirs - folded).abs().max() / folded.square().mean().sqrt()) <= bound, name
    assert not torch.equal(found["fp8"][0], found["folded"][0])
