"""Bases with a guidance input (FLUX.1 dev, Kontext) and without a connector: folding, files, conditioning."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fe2e_core.architecture import TransformerSize, transformer_shapes
from fe2e_core.assembly import Assembled, Storage
from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.emptyprompt import read_conditioning
from fe2e_core.folding import fold, has_guidance, modulation_input
from fe2e_core.recognition import check_base, check_transformer
from fe2e_core.tensorfile import TensorFile
from tests.harness.golden import GoldenConfig, dit_weights, draw, vae_weights
from tests.harness.tiny import write_prompt_cache

CONFIG = GoldenConfig(hidden=128, depth=1, single=1, ctx=32)
CONDITIONING = Conditioning(torch.randn(1, 5, 32), torch.randn(1, 768), guidance=2.5)


@pytest.fixture(scope="module")
def guided() -> dict[str, torch.Tensor]:
    shapes = transformer_shapes(TransformerSize(128, 32, 768, 1, 1), folded=False, guidance=True)
    weights = dit_weights(CONFIG, connector=False)
    weights |= {name: draw(name, shape, 1) for name, shape in shapes.items() if name not in weights}
    return {name: tensor.float() for name, tensor in weights.items()}


def test_the_constant_holds_the_guidance(guided):
    """Against the formula, in float64: silu of the sum of three small networks, of 1000 t, 1000 g and the pooled vector."""
    wide = {name: tensor.double() for name, tensor in guided.items()}

    def network(x: torch.Tensor, name: str) -> torch.Tensor:
        x = F.silu(x @ wide[f"{name}.in_layer.weight"].T + wide[f"{name}.in_layer.bias"])
        return x @ wide[f"{name}.out_layer.weight"].T + wide[f"{name}.out_layer.bias"]

    def embedding(value: float) -> torch.Tensor:
        angles = value * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        return torch.cat([angles.cos(), angles.sin()])[None]

    total = network(embedding(1000), "time_in") + network(embedding(2500), "guidance_in")
    expected = F.silu(total + network(CONDITIONING.pooled.double(), "vector_in"))
    found = modulation_input(guided, CONDITIONING, torch.float32)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=0)


def test_folding_leaves_no_guidance_input(guided):
    silu_vec = modulation_input(guided, CONDITIONING, torch.float32)
    folded = fold(guided, silu_vec)
    assert not has_guidance(folded)
    assert set(Assembled(guided, silu_vec, Storage())) == set(folded)
    assert has_guidance(Assembled(guided, None, Storage()))
    check_transformer(folded, "transformer")
    without = {name: tensor for name, tensor in guided.items() if not name.startswith("guidance_in")}
    other = modulation_input(without, CONDITIONING, torch.float32)
    assert float((other - silu_vec).abs().max()) > 0.05


def test_guidance_is_asked_for(guided, tmp_path):
    silent = Conditioning(CONDITIONING.context, CONDITIONING.pooled)
    with pytest.raises(ValueError, match="guidance input .* no guidance is given"):
        modulation_input(guided, silent, torch.float32)
    vae = vae_weights(CONFIG)
    with pytest.raises(ValueError, match="no guidance is given"):
        write_checkpoint(tmp_path / "x.safetensors", CheckpointInfo(name="x"), guided, vae, silent, None)
    with pytest.raises(ValueError, match="guidance is nan"):
        Conditioning(CONDITIONING.context, CONDITIONING.pooled, float("nan"))


def test_a_whole_checkpoint_keeps_its_guidance(guided, tmp_path):
    path = tmp_path / "whole.safetensors"
    vae = vae_weights(CONFIG)
    write_checkpoint(path, CheckpointInfo(name="whole"), guided, vae, CONDITIONING, None)
    with TensorFile(path) as file:
        assert read_checkpoint(file).conditioning.guidance == 2.5
        cut = {name: file[name] for name in file if name != "conditioning.guidance"}
        metadata = file.metadata
    save_file(cut, tmp_path / "cut.safetensors", metadata)
    with TensorFile(tmp_path / "cut.safetensors") as file, pytest.raises(ValueError, match=r"lacks \['conditioning.guidance'\]"):
        read_checkpoint(file)
    folded = fold(guided, modulation_input(guided, CONDITIONING, torch.float32))
    mixed = folded | {name: tensor for name, tensor in guided.items() if name.startswith("guidance_in")}
    with pytest.raises(ValueError, match="folded and has a guidance input"):
        check_transformer(mixed, "transformer")


def test_a_base_for_a_lora_of_ones_own_may_be_any(guided):
    v1_1 = dit_weights(GoldenConfig(hidden=128, depth=1, single=1, ctx=128, ctx_heads=1))
    del v1_1["connector.scale_factor"]
    for weights in (guided, v1_1, dit_weights(CONFIG, connector=False)):
        check_base(weights, "transformer 'x'", released=False)
        with pytest.raises(ValueError, match=r"trained on (Step1X-Edit )?v1\.0"):
            check_base(weights, "transformer 'x'")
    broken = {name: tensor for name, tensor in guided.items() if name != "guidance_in.out_layer.bias"}
    with pytest.raises(ValueError, match=r"guidance_in\.out_layer\.bias"):
        check_base(broken, "transformer 'x'", released=False)


def test_the_conditioning_file_must_belong_to_the_base(guided, tmp_path):
    good, wide, cache = tmp_path / "good.safetensors", tmp_path / "wide.safetensors", tmp_path / "no_info.npz"
    save_file({"context": CONDITIONING.context, "pooled": CONDITIONING.pooled}, good)
    save_file({"context": torch.zeros(1, 5, 48), "pooled": CONDITIONING.pooled}, wide)
    write_prompt_cache(cache, CONFIG)
    found = read_conditioning(good, guided, guidance=2.5)
    assert torch.equal(found.context, CONDITIONING.context)
    assert found.guidance == 2.5
    without = {name: tensor for name, tensor in guided.items() if not name.startswith("guidance_in")}
    assert read_conditioning(good, without, guidance=2.5).guidance is None
    for path, message in ((wide, r"\(1, 5, 48\).*\(1, tokens, 32\)"), (cache, "no safetensors file.*no connector"),
                          (tmp_path / "none.safetensors", "none.safetensors")):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_conditioning(path, guided)
    save_file({"context": CONDITIONING.context}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"lacks \['pooled'\].*empty-prompt"):
        read_conditioning(tmp_path / "half.safetensors", guided)
