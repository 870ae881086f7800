"""Long batches, memory running out, interruption, partial loading, half precision: the right result or none."""

from __future__ import annotations

import dataclasses
import logging
import random

import comfy.model_management as mm
import comfy.utils
import pytest
import torch
from comfy.cli_args import args
from safetensors.torch import load_file, save_file

from tests.harness.inprocess import pack_module, run_node
from tests.harness.tiny import PROMPT_CACHE, TRANSFORMER, VAE, write_fe2e_parts

TRAINED = {"size": "trained size"}
TILED = {"size": "tiled (large pictures)", "detail": 2.0, "overlap": 0.25}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_fe2e_parts(folder)
    return folder


def load(models, dtype: str = "fp32", transformer: str = TRANSFORMER):
    loaded = pack_module("nodes.loading").load_parts(
        str(models / "diffusion_models" / transformer), None, 1.0, str(models / "vae" / VAE),
        str(models / "fe2e" / PROMPT_CACHE), dtype)
    return dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, height=32, width=32))


@pytest.fixture(scope="module")
def model(models):
    return load(models)


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def run(model, image, size=TRAINED, **inputs):
    return run_node(pack_module("nodes.estimation").FE2EEstimate, fe2e_model=model, image=image, size=size, **inputs)


def run_out_of_memory(patch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """Makes the transformer run out above `limit` pictures, and now and then below; the list grows by the calls."""
    backend = pack_module("nodes.backend")
    transform, chance, calls = backend.transform, random.Random(5), []

    def failing(model, latent):
        calls.append(latent.shape[0])
        if latent.shape[0] > limit or (latent.shape[0] > 1 and chance.random() < 0.2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB (injected)")
        return transform(model, latent)

    patch.setattr(backend, "transform", failing)
    return calls


def test_64_frames_finish_when_memory_runs_out(model, monkeypatch, caplog):
    frames = picture(64, 20, 24, 3)
    expected, expected_depth, _ = run(model, frames, chunk=1)
    calls = run_out_of_memory(monkeypatch, limit=9)
    with caplog.at_level(logging.WARNING):
        ours, depth, _ = run(model, frames, chunk=32)
    assert calls[:2] == [32, 16]
    assert sum("out of memory" in record.getMessage() for record in caplog.records) >= 3
    torch.testing.assert_close(ours["log_depth"], expected["log_depth"], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours["normal"], expected["normal"], atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, expected_depth, atol=1e-3, rtol=0)


def test_tiles_finish_when_memory_runs_out(model, monkeypatch):
    image = picture(1, 64, 64, 3)
    expected, _, _ = run(model, image, TILED, chunk=1)
    calls = run_out_of_memory(monkeypatch, limit=5)
    ours, _, _ = run(model, image, TILED, chunk=6)
    assert max(calls) == 6
    torch.testing.assert_close(ours["log_depth"], expected["log_depth"], atol=1e-4, rtol=0)


def test_one_picture_that_does_not_fit_is_said(model, monkeypatch):
    def failing(model, latent):
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(pack_module("nodes.backend"), "transform", failing)
    with pytest.raises(RuntimeError, match="does not fit into memory; choose a smaller 'size'"):
        run(model, picture(2, 20, 24, 3), chunk=2)


def test_another_error_is_not_taken_for_memory(model, monkeypatch):
    def failing(model, latent):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(pack_module("nodes.backend"), "transform", failing)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run(model, picture(2, 20, 24, 3), chunk=2)


@pytest.mark.parametrize(("size", "steps"), [(TRAINED, 2 * 4), (TILED, 2 * 4 * (1 + 9))])
def test_progress_reaches_its_end_and_never_goes_back(model, size, steps):
    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *rest, **more: seen.append((value, total)))
    try:
        run(model, picture(2, 64, 64, 3), size, chunk=2)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert {total for _, total in seen} == {steps}
    values = [value for value, _ in seen]
    assert values == sorted(values)
    assert values[-1] == steps
    # ComfyUI passes on only some updates a second; a fast machine shows few of them.
    assert any(0 < value < steps for value in values)


@pytest.mark.parametrize("size", [TRAINED, TILED])
@pytest.mark.parametrize("stage", ["encode", "transform", "decode"])
def test_an_interruption_ends_the_run_at_the_next_step(model, monkeypatch, size, stage):
    backend = pack_module("nodes.backend")
    original, calls = getattr(backend, stage), []

    def interrupting(*given):
        calls.append(stage)
        mm.interrupt_current_processing()
        return original(*given)

    monkeypatch.setattr(backend, stage, interrupting)
    try:
        with pytest.raises(mm.InterruptProcessingException):
            run(model, picture(2, 64, 64, 3), size, chunk=1)
        assert len(calls) == 1
    finally:
        mm.interrupt_current_processing(False)
    monkeypatch.undo()
    run(model, picture(1, 20, 24, 3))


@torch.inference_mode()
def test_a_partly_loaded_model_gives_the_same(models):
    backend = pack_module("nodes.backend")
    latent = picture(1, 16, 8, 8)
    whole = load(models)
    expected = backend.transform(whole, latent)
    part = load(models)
    part.patcher.load(part.patcher.load_device, lowvram_model_memory=part.patcher.model_size() // 3)
    assert 0 < part.patcher.loaded_size() < part.patcher.model_size()
    for ours, theirs in zip(_transform_as_loaded(backend, part, latent), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def _transform_as_loaded(backend, model, latent):
    """transform() without loading first, which would complete a partial load where memory is plenty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mm, "load_models_gpu", lambda *given, **named: None)
        return backend.transform(model, latent)


def test_half_precision_intermediates_do_not_reach_the_results(model, monkeypatch):
    expected, depth, normal = run(model, picture(1, 20, 24, 3))
    # An older ComfyUI has no such option.
    monkeypatch.setattr(args, "fp16_intermediates", True, raising=False)
    monkeypatch.setattr(args, "fp16_vae", True)
    ours, our_depth, our_normal = run(model, picture(1, 20, 24, 3))
    for key in ("log_depth", "normal"):
        assert ours[key].dtype == torch.float32
        assert torch.equal(ours[key], expected[key])
    assert our_depth.dtype == our_normal.dtype == torch.float32
    assert torch.equal(our_depth, depth)
    assert torch.equal(our_normal, normal)


@pytest.fixture(scope="module")
def overflowing(models):
    """A transformer whose first layers, and what they put out, exceed the range of float16."""
    weights = load_file(models / "diffusion_models" / TRANSFORMER)
    for name in ("img_in.weight", "img_in.bias", "txt_in.weight", "txt_in.bias"):
        weights[name] = weights[name] * 1e6
    save_file(weights, models / "diffusion_models" / "overflowing.safetensors")
    return "overflowing.safetensors"


def test_float16_overflow_falls_back_and_says_so_once(models, overflowing, caplog):
    """ComfyUI's Flux hides NaN in float16: its result would be finite and wrong."""
    frames = picture(3, 20, 24, 3)
    expected, _, _ = run(load(models, "fp32", overflowing), frames, chunk=1)
    half = load(models, "fp32", overflowing)
    # ComfyUI computes in float32 on a CPU; its own switch makes it float16.
    half.patcher.set_model_compute_dtype(torch.float16)
    with caplog.at_level(logging.WARNING):
        ours, depth, _ = run(half, frames, chunk=1)
    said = [record.getMessage() for record in caplog.records if "overflows in float16" in record.getMessage()]
    assert len(said) == 1
    assert depth.isfinite().all()
    torch.testing.assert_close(ours["log_depth"], expected["log_depth"], atol=1e-4, rtol=0)
    # The model that was given still computes as its owner chose, and nothing is left watching it.
    assert pack_module("nodes.overflow").compute_dtype(half.patcher) == torch.float16
    assert not any(module._forward_hooks for module in half.patcher.model.diffusion_model.modules())


def test_float16_that_overflows_inside_a_block_is_seen_although_the_block_hides_it(models):
    """What comes out of the layer becomes NaN in the block, and NaN zero at its end: the block puts out nothing unusual."""
    backend, overflow, latent = pack_module("nodes.backend"), pack_module("nodes.overflow"), picture(1, 16, 8, 8)
    weights = load_file(models / "diffusion_models" / TRANSFORMER)
    weights["single_blocks.0.linear1.weight"] *= 1e5
    save_file(weights, models / "diffusion_models" / "hidden.safetensors")
    half = load(models, "fp32", "hidden.safetensors")
    half.patcher.set_model_compute_dtype(torch.float16)
    blocks = []
    transformer = half.patcher.model.diffusion_model
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        block.register_forward_hook(lambda module, given, out: blocks.extend(out if isinstance(out, tuple) else (out,)))
    with torch.inference_mode(), overflow.watch(half.patcher) as seen:
        backend.transform(half, latent)
    assert blocks
    assert all(bool((out.abs() < torch.finfo(torch.float16).max).all()) for out in blocks)
    assert seen.overflowed()


def test_float16_that_does_not_overflow_stays(models, caplog):
    half = load(models)
    half.patcher.set_model_compute_dtype(torch.float16)
    with caplog.at_level(logging.WARNING):
        ours, _, _ = run(half, picture(1, 20, 24, 3))
    assert not [record for record in caplog.records if "overflows" in record.getMessage()]
    expected, _, _ = run(load(models), picture(1, 20, 24, 3))
    assert not torch.equal(ours["log_depth"], expected["log_depth"])  # it did compute in float16
    torch.testing.assert_close(ours["log_depth"], expected["log_depth"], atol=0.1, rtol=0)


def test_weights_that_are_broken_in_float32_are_refused(models):
    weights = load_file(models / "diffusion_models" / TRANSFORMER)
    weights["final_layer.linear.bias"][3] = float("nan")
    save_file(weights, models / "diffusion_models" / "broken.safetensors")
    with pytest.raises(RuntimeError, match="NaN or infinite even in float32"):
        run(load(models, "fp32", "broken.safetensors"), picture(1, 20, 24, 3))


def test_a_broken_vae_is_refused(models):
    broken = load(models)
    with torch.no_grad():
        broken.vae.first_stage_model.decoder.conv_out.bias[0] = float("inf")
    with pytest.raises(RuntimeError, match="^VAE: .*load ae.safetensors again"):
        run(broken, picture(1, 20, 24, 3))
