"""cuDNN's attention: where it is taken, and that it gives what ComfyUI's own does."""

from __future__ import annotations

from pathlib import Path

import comfy.ldm.modules.attention as attention
import pytest
import torch

from tests.harness.inprocess import pack_module

NANO = Path(__file__).resolve().parents[2] / "models" / "fe2e-nano.safetensors"
CARD = torch.device("cuda", 0)


def drawn(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(3)]


def test_what_flux_asks_for_is_the_same():
    """On a CPU the last of the order serves, so arrangement and fallback are what is compared."""
    cudnn_first = pack_module("nodes.attention").cudnn_first
    q, k, v = drawn(2, 3, 50, 16)

    def unwanted(*args, **kwargs):
        raise AssertionError("handed back")

    found = cudnn_first(unwanted, q, k, v, 3, mask=None, skip_reshape=True, transformer_options={})
    torch.testing.assert_close(found, attention.attention_basic(q, k, v, 3, skip_reshape=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"skip_reshape": True, "mask": torch.zeros(50, 50)}, {"skip_reshape": True, "skip_output_reshape": True},
     {"skip_reshape": True, "enable_gqa": True}, {"skip_reshape": True, "scale": 0.5}],
)  # fmt: skip
def test_anything_else_is_handed_back(options):
    handed = []

    def own(*args, **kwargs):
        handed.append((args, kwargs))
        return args[0]

    q, k, v = drawn(2, 3, 50, 16)
    assert pack_module("nodes.attention").cudnn_first(own, q, k, v, 3, **options) is q
    assert len(handed) == 1
    assert handed[0][0][3] == 3
    assert handed[0][1] == options


@pytest.mark.parametrize(
    ("card", "function", "quicker"),
    [((9, 0), "attention_pytorch", True), ((8, 9), "attention_pytorch", False), ((12, 0), "attention_pytorch", False),
     ((9, 0), "attention_sage", False)],
)  # fmt: skip
def test_only_where_it_was_measured(monkeypatch, card, function, quicker):
    """There is no card here; what is asked of torch is answered for one."""
    module = pack_module("nodes.attention")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(module.comfy.ldm.flux.math, "optimized_attention", getattr(attention, function))
    assert module.is_quicker(CARD) == quicker
    assert not module.is_quicker(torch.device("cpu"))


@torch.inference_mode()
def test_a_pass_goes_through_it_unless_the_user_has_his_own(monkeypatch):
    backend, latent = pack_module("nodes.backend"), torch.randn(1, 16, 12, 8, generator=torch.Generator().manual_seed(0))
    model = pack_module("nodes.loading").load_checkpoint(str(NANO), None, 1.0, "fp32")
    monkeypatch.setattr(backend, "MASK_ATTENTION", ())  # merged tokens bring a mask, which is for a CPU
    plain = backend.transform(model, latent)
    seen = []

    def watched(function, *args, **kwargs):
        seen.append("cudnn")
        return pack_module("nodes.attention").cudnn_first(function, *args, **kwargs)

    monkeypatch.setattr(backend, "cudnn_first", watched)
    monkeypatch.setattr(backend, "is_quicker", lambda device: True)
    for one, two in zip(plain, backend.transform(model, latent), strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=0)
    params = model.patcher.model.diffusion_model.params
    assert seen == ["cudnn"] * (params.depth + params.depth_single_blocks)

    def own(function, *args, **kwargs):
        seen.append("own")
        return function(*args, **kwargs)

    seen.clear()
    model.patcher.model_options["transformer_options"]["optimized_attention_override"] = own
    backend.transform(model, latent)
    assert set(seen) == {"own"}
