"""The operation and parameter counts that the benchmarks print beside measured ratios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import macs
from benchmarks.models import golden_config, prompt, transformer
from benchmarks.sizes import RELEASED, SIXTEENTH, TINY
from fe2e_core.conditioning import constant_conditioning
from fe2e_core.folding import is_modulation
from tests.harness.golden import dit_shapes, vae_shapes

DATA = Path(__file__).resolve().parents[1] / "data"


def parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def test_the_released_model_at_its_trained_size() -> None:
    """59.9 T MACs in one pass; two copies with their connectors are 2.009 times that."""
    tokens = macs.image_tokens(768, 1024)
    one = macs.transformer_macs(RELEASED, tokens, RELEASED.text_tokens)
    assert tokens + RELEASED.text_tokens == 6784
    assert one / 1e12 == pytest.approx(59.9, abs=0.05)
    reference = macs.reference_counted(RELEASED, 768, 1024)
    assert (reference.connector + reference.transformer) / one == pytest.approx(2.009, abs=5e-4)


def test_folding_saves_memory_not_time() -> None:
    tokens = macs.image_tokens(768, 1024)
    whole, folded = macs.transformer_parameters(RELEASED), macs.transformer_parameters(RELEASED, folded=True)
    assert (whole - folded) / 1e9 == pytest.approx(3.25, abs=0.005)
    assert folded / 1e9 == pytest.approx(8.64, abs=0.005)
    saved = macs.transformer_macs(RELEASED, tokens, 640) - macs.transformer_macs(RELEASED, tokens, 640, True)
    assert saved / 1e9 == pytest.approx(3.2, abs=0.1)


def test_parameters_equal_the_released_key_list() -> None:
    """Names and shapes of the release, from its own key list."""
    keys = json.loads((DATA / "step1x_keys.json").read_text())
    shapes = {name: tuple(shape) for name, shape in keys.items()}
    connector = {n: s for n, s in shapes.items() if n.startswith("connector.")}
    modulation = {n: s for n, s in shapes.items() if is_modulation(n.rpartition(".")[0])}
    assert parameters(shapes) == 12_427_800_385
    assert macs.connector_parameters(RELEASED) == parameters(connector)
    assert macs.transformer_parameters(RELEASED) == parameters(shapes) - parameters(connector)
    assert macs.modulation_parameters(RELEASED) == parameters(modulation)


@pytest.mark.parametrize("size", [RELEASED, SIXTEENTH, TINY], ids=lambda size: size.name)
def test_parameters_equal_the_shapes(size) -> None:
    shapes = dit_shapes(golden_config(size))
    assert macs.transformer_parameters(size) + macs.connector_parameters(size) == parameters(shapes)
    assert macs.autoencoder_parameters(size.vae_width) == parameters(vae_shapes(size.vae_width))


@pytest.mark.parametrize("size", [TINY, SIXTEENTH], ids=lambda size: size.name)
def test_the_connector_by_the_flop_counter(size) -> None:
    drawn = transformer(size)
    weights = {name: drawn[name] for name in drawn if name.startswith("connector.")}
    # On the CPU torch's fused attention is one operation that its counter does not know.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        constant_conditioning(weights, *prompt(size))
    assert counter.get_total_flops() == 2 * macs.connector_macs(size)


def test_weight_memory_of_the_cpu_benchmark() -> None:
    """The bound of the CPU benchmark follows from the sizes alone: at most 0.7 of the reference's weights."""
    vae = macs.autoencoder_parameters(SIXTEENTH.vae_width)
    reference = macs.transformer_parameters(SIXTEENTH) + macs.connector_parameters(SIXTEENTH) + vae
    constant = SIXTEENTH.text_tokens * SIXTEENTH.context_width + SIXTEENTH.pooled + SIXTEENTH.hidden
    ours = macs.transformer_parameters(SIXTEENTH, folded=True) + constant + vae
    assert ours / reference <= 0.7
