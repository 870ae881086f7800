"""Estimate Depth+Normal on odd and bad input: exact size back, or a refusal that helps."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from tests.harness.inprocess import pack_module, run_node
from tests.harness.tiny import PROMPT_CACHE, TRANSFORMER, VAE, write_fe2e_parts

TRAINED = {"size": "trained size"}
NATIVE = {"size": "native size"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model, said to be trained at 48x32 so that its own size is quick."""
    models = tmp_path_factory.mktemp("tiny")
    write_fe2e_parts(models)
    loaded = pack_module("nodes.loading").load_parts(
        str(models / "diffusion_models" / TRANSFORMER), None, 1.0, str(models / "vae" / VAE),
        str(models / "fe2e" / PROMPT_CACHE), "fp32")
    return dataclasses.replace(loaded, info=dataclasses.replace(loaded.info, height=32, width=48))


def picture(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def run(model, image, size=TRAINED, **inputs):
    node = pack_module("nodes.estimation").FE2EEstimate
    return run_node(node, fe2e_model=model, image=image, size=size, **inputs)


def check(outputs, b: int, height: int, width: int) -> None:
    geometry, depth, normal = outputs
    assert geometry["log_depth"].shape == (b, height, width)
    assert geometry["log_depth"].abs().max() <= 1
    assert geometry["normal"].shape == (b, height, width, 3)
    torch.testing.assert_close(geometry["normal"].norm(dim=-1), torch.ones(b, height, width))
    assert geometry["mask"].shape == (b, height, width)
    assert geometry["mask"].dtype == torch.bool
    assert geometry["image"].shape == (b, height, width, 3)
    assert depth.shape == normal.shape == (b, height, width, 3)
    for tensor in (geometry["log_depth"], geometry["normal"], geometry["image"], depth, normal):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    for drawn in (depth, normal):
        assert drawn.min() >= 0
        assert drawn.max() <= 1


@pytest.mark.parametrize("size", [TRAINED, NATIVE, {"size": "longest side", "longest_side": 64},
                                  {"size": "tiled (large pictures)", "detail": 2.0, "overlap": 0.25}])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (33, 97), (50, 200)])
def test_every_size_comes_back_exactly(model, size, height, width):
    check(run(model, picture(1, height, width, 3), size), 1, height, width)


@pytest.mark.parametrize("size", [TRAINED, {"size": "tiled (large pictures)", "detail": 2.0, "overlap": 0.25}])
def test_a_strip_of_4097_by_33(model, size):
    check(run(model, picture(1, 33, 4097, 3), size), 1, 33, 4097)
    check(run(model, picture(1, 4097, 33, 3), size), 1, 4097, 33)


def test_one_channel_is_repeated(model):
    grey = picture(1, 40, 50, 1)
    ours, _, _ = run(model, grey)
    check(run(model, grey), 1, 40, 50)
    expected, _, _ = run(model, grey.expand(-1, -1, -1, 3).contiguous())
    assert torch.equal(ours["log_depth"], expected["log_depth"])


def test_alpha_is_dropped_and_said_once(model, caplog):
    image = picture(3, 40, 50, 4)
    with caplog.at_level(logging.INFO):
        ours, _, _ = run(model, image)
    assert sum("alpha" in record.getMessage() for record in caplog.records) == 1
    expected, _, _ = run(model, image[..., :3].contiguous())
    assert torch.equal(ours["log_depth"], expected["log_depth"])


def test_values_outside_the_range_are_clamped_with_one_warning(model, caplog):
    image = picture(2, 40, 50, 3) * 3 - 1
    with caplog.at_level(logging.WARNING):
        ours, _, _ = run(model, image)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "clamped" in warnings[0].getMessage()
    expected, _, _ = run(model, image.clamp(0, 1))
    assert torch.equal(ours["log_depth"], expected["log_depth"])
    assert torch.equal(ours["image"], image.clamp(0, 1))


@pytest.mark.parametrize(("image", "message"), [
    (torch.zeros(0, 8, 8, 3), "no pixels"),
    (torch.zeros(1, 0, 8, 3), "no pixels"),
    (torch.full((1, 8, 8, 3), float("nan")), "NaN or infinite"),
    (torch.full((1, 8, 8, 3), float("inf")), "NaN or infinite"),
    (torch.zeros(1, 8, 8, 2), "1, 3 or 4 channels"),
    (torch.zeros(1, 8, 8, 5), "1, 3 or 4 channels"),
    (torch.zeros(8, 8, 3), "expected"),
])
def test_bad_pictures_are_refused(model, image, message):
    with pytest.raises(ValueError, match=f"^image: .*{message}"):
        run(model, image)


@pytest.mark.parametrize(("mask", "message"), [
    (torch.ones(1, 64, 64), "expected one mask"),
    (torch.ones(3, 40, 50), "expected one mask"),
    (torch.zeros(1, 40, 50), "no pixel counts"),
    (torch.ones(1, 40, 50).index_fill_(1, torch.tensor([3]), float("nan")), "NaN"),
])
def test_bad_masks_are_refused(model, mask, message):
    with pytest.raises(ValueError, match=message):
        run(model, picture(2, 40, 50, 3), mask=mask)


def test_a_mask_is_kept_and_serves_a_whole_batch(model):
    mask = torch.zeros(1, 40, 50)
    mask[:, 10:30, 5:45] = 1
    image = picture(2, 40, 50, 3)
    geometry, _, _ = run(model, image, mask=mask)
    assert torch.equal(geometry["mask"], (mask > 0.5).expand(2, -1, -1))
    without, _, _ = run(model, image)
    assert torch.equal(geometry["log_depth"], without["log_depth"])


def test_something_else_instead_of_a_model_is_refused():
    with pytest.raises(ValueError, match="Load FE2E Model"):
        run(object(), picture(1, 8, 8, 3))


def test_every_picture_of_a_batch_is_used_and_results_repeat(model):
    image = torch.cat([picture(1, 40, 50, 3, seed=n) for n in range(3)])
    together, depth, _ = run(model, image)
    again, depth_again, _ = run(model, image)
    assert torch.equal(together["log_depth"], again["log_depth"])
    assert torch.equal(together["normal"], again["normal"])
    assert torch.equal(depth, depth_again)
    for n in range(3):
        alone, _, _ = run(model, image[n:n + 1])
        torch.testing.assert_close(together["log_depth"][n:n + 1], alone["log_depth"], atol=1e-4, rtol=0)
    assert not torch.allclose(together["log_depth"][0], together["log_depth"][1], atol=1e-2)
