"""Feature View: the right block, the right half of the tokens, and the prediction untouched."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.harness.inprocess import pack_module, run_node
from tests.harness.tiny import PROMPT_CACHE, TRANSFORMER, VAE, write_fe2e_parts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model: two double and three single blocks."""
    models = tmp_path_factory.mktemp("tiny")
    write_fe2e_parts(models)
    return pack_module("nodes.loading").load_parts(
        str(models / "diffusion_models" / TRANSFORMER), None, 1.0, str(models / "vae" / VAE),
        str(models / "fe2e" / PROMPT_CACHE), "fp32")


@pytest.fixture(scope="module")
def latent():
    return torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(3))


def test_counts_double_blocks_before_single_ones():
    features = pack_module("nodes.features")
    assert features.block_position(1, 19, 38) == ("double_block", 0)
    assert features.block_position(20, 19, 38) == ("single_block", 0)
    assert features.block_position(57, 19, 38) == ("single_block", 37)
    with pytest.raises(ValueError, match="58"):
        features.block_position(58, 19, 38)
    assert [features.scaled_block(n, 57) for n in (1, 20, 35)] == [1, 20, 35]
    assert [features.scaled_block(n, 5) for n in (1, 20, 35)] == [1, 2, 3]


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_norms_are_those_of_the_blocks_own_output(model, latent, number):
    """Against a plain PyTorch hook on the block, which knows nothing of ComfyUI's patches."""
    features, backend = pack_module("nodes.features"), pack_module("nodes.backend")
    network = model.patcher.model.diffusion_model
    blocks = [*network.double_blocks, *network.single_blocks]
    caught = []
    hook = blocks[number - 1].register_forward_hook(
        # copied, because the next block adds to it in place
        lambda module, inputs, output: caught.append((output if number > 2 else output[0]).clone()))
    try:
        with torch.inference_mode():
            before = backend.transform(model, latent)
            norms = features.feature_norms(model, latent, features.block_position(number, 2, 3))
    finally:
        hook.remove()
    assert norms.shape == (2, 2, 3, 4)
    out = caught[0]
    text = out.shape[1] - 2 * 12
    assert (text == 0) == (number <= 2), "single blocks have the text first"
    depth, normal = out[:, text:text + 12], out[:, text + 12:]
    torch.testing.assert_close(norms[:, 0].reshape(2, 12), depth.float().norm(dim=-1))
    torch.testing.assert_close(norms[:, 1].reshape(2, 12), normal.float().norm(dim=-1))
    assert not torch.equal(norms[:, 0], norms[:, 1])
    with torch.inference_mode():
        after = backend.transform(model, latent)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the given model keeps no patch"


def test_a_patch_that_is_there_already_still_works(model, latent):
    features = pack_module("nodes.features")
    position = ("double_block", 0)
    patcher = model.patcher.clone()

    def doubled(arguments, extra):
        out = extra["original_block"](arguments)
        return {**out, "img": 2 * out["img"]}

    patcher.set_model_patch_replace(doubled, "dit", *position)
    patched = dataclasses.replace(model, patcher=patcher)
    with torch.inference_mode():
        plain = features.feature_norms(model, latent, position)
        twice = features.feature_norms(patched, latent, position)
    torch.testing.assert_close(twice, 2 * plain)


def test_pictures_have_the_inputs_size_and_use_the_whole_map(model):
    node = pack_module("nodes.features").FE2EFeatureView
    model = dataclasses.replace(model, info=dataclasses.replace(model.info, height=48, width=64))
    image = torch.rand(2, 37, 61, 3, generator=torch.Generator().manual_seed(1))
    depth, normal, report = run_node(node, fe2e_model=model, image=image, block={"block": "block 35"})
    assert depth.shape == normal.shape == image.shape
    for picture in (depth, normal):
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert picture.std(dim=(1, 2)).max() > 0.05
    assert not torch.equal(depth, normal)
    assert report.startswith("block 3 of 5 (single block 1)")
    with pytest.raises(ValueError, match="6"):
        run_node(node, fe2e_model=model, image=image, block={"block": "block number", "number": 6})
    with pytest.raises(ValueError, match="Load FE2E Model"):
        run_node(node, fe2e_model=None, image=image, block={"block": "block 1"})
