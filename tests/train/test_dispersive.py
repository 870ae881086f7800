"""The dispersive loss equals its formula, acts at the real size, and says when it cannot."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from train.dispersive import Dispersion, DispersiveConfig, dispersive_loss, tap_single_block

REAL_DIMENSIONS = (6144 + 640) * 3072
"""Tokens of a 1024x768 picture beside zeros, and of the prompt, times the released width."""


def direct(features: Tensor, others: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """Eq. 9 per dimension as it is written, in float64."""
    live = features.double().flatten(1)
    everyone = live if others is None else torch.cat([live, others.double().flatten(1)])
    total = torch.zeros((), dtype=torch.float64)
    for a in live:
        for b in everyone:
            total = total + torch.exp(-(a - b).square().sum() / live.shape[1] / tau)
    return torch.log(total / (len(live) * len(everyone)))


@pytest.mark.parametrize(("tau", "remembered"), [(1.0, 0), (0.3, 0), (1.0, 3)])
def test_equals_a_direct_float64_evaluation(tau, remembered):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 7, 11, generator=generator, requires_grad=True)
    others = torch.randn(remembered, 7, 11, generator=generator) if remembered else None
    ours = dispersive_loss(features, others, tau)
    (gradient,) = torch.autograd.grad(ours, features)
    exact = features.detach().double().requires_grad_()
    theirs = direct(exact, others, tau)
    (expected,) = torch.autograd.grad(theirs, exact)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-9)


def test_float64_features_pass_the_gradient_check():
    features = torch.randn(
        3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    assert torch.autograd.gradcheck(dispersive_loss, (features,))


def test_the_gradient_is_there_at_the_real_dimension_count():
    few = torch.randn(2, REAL_DIMENSIONS // 64, generator=torch.Generator().manual_seed(2))
    features = few.bfloat16().repeat(1, 64).requires_grad_()
    assert features.shape[1] == REAL_DIMENSIONS
    loss = dispersive_loss(features)
    # repeating the features changes no mean
    exact = float(direct(few.bfloat16()))
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    assert loss.item() > -math.log(2) + 0.05, "the constant of Eq. 9 without division"
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient.count_nonzero() > 0.99 * gradient.numel()


def test_a_step_down_the_gradient_pushes_apart():
    features = torch.randn(2, 50, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(dispersive_loss(features), features)
    with torch.no_grad():
        moved = features - gradient
        assert (moved[0] - moved[1]).norm() > (features[0] - features[1]).norm()


def test_one_picture_alone_warns_once_and_gives_zero(caplog):
    dispersion = Dispersion(DispersiveConfig())
    alone = torch.randn(1, 8, requires_grad=True)
    with caplog.at_level(logging.WARNING):
        losses = [dispersion(alone), dispersion(alone)]
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert len([r for r in caplog.records if "cannot act" in r.message]) == 1
    caplog.clear()
    Dispersion(DispersiveConfig())(torch.randn(2, 8))
    assert not caplog.records


def test_pictures_too_far_apart_for_tau_are_said_once_with_the_tau_that_would_do(caplog):
    features = 6 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(2))
    live = features.clone().requires_grad_()
    dispersion = Dispersion(DispersiveConfig())
    with caplog.at_level(logging.WARNING):
        (nothing,) = torch.autograd.grad(dispersion(live) + dispersion(live), live)
    (record,) = caplog.records
    distance = float((features[0] - features[1]).square().mean())
    assert f"({distance:.3g} per dimension)" in record.getMessage()
    caplog.clear()
    (gradient,) = torch.autograd.grad(Dispersion(DispersiveConfig(tau=distance))(live), live)
    assert float(gradient.norm()) > 1e6 * float(nothing.norm())
    assert not caplog.records


def test_a_queue_makes_one_picture_act_and_resumes_exactly(caplog):
    config = DispersiveConfig(source="queue", queue=2)
    dispersion = Dispersion(config)
    pictures = list(torch.randn(5, 1, 6, generator=torch.Generator().manual_seed(3)))
    small = torch.randn(1, 4)
    for picture in (pictures[0], pictures[1], small, pictures[2]):
        dispersion(picture)
    resumed = Dispersion(config)
    resumed.load_state_dict(dispersion.state_dict())
    live = pictures[3].clone().requires_grad_()
    ours, again = dispersion(live), resumed(live)
    assert ours.item() == again.item() == pytest.approx(float(direct(pictures[3], pictures[2])))
    (gradient,) = torch.autograd.grad(ours, live)
    assert bool(gradient.any())
    assert not caplog.records


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    features = torch.randn(4, 9, generator=torch.Generator().manual_seed(4))
    own = features[2 * rank : 2 * rank + 2].clone().requires_grad_()
    loss = Dispersion(DispersiveConfig(source="gather"))(own)
    loss.backward()
    torch.save((loss.detach(), own.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_gradient_of_one_process_with_both_batches(tmp_path: Path):
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    features = torch.randn(4, 9, generator=torch.Generator().manual_seed(4)).requires_grad_()
    loss = Dispersion(DispersiveConfig(source="gather"))(features)
    loss.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for value, _ in parts:
        torch.testing.assert_close(value, loss.detach())
    # an average over ranks divides by two
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]) / 2, features.grad)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_tap_hears_the_block_with_its_text_tokens(checkpointing):
    from diffusers import FluxTransformer2DModel  # here: the ranks above need not wait for it

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=128, num_attention_heads=1,
        joint_attention_dim=32, pooled_projection_dim=16,
    )  # fmt: skip
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    tap = tap_single_block(model, DispersiveConfig(block=1))

    def run() -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return model(
            hidden_states=torch.randn(2, 6, 64, generator=generator), img_ids=torch.zeros(6, 3),
            encoder_hidden_states=torch.randn(2, 3, 32, generator=generator), txt_ids=torch.zeros(3, 3),
            timestep=torch.ones(2), pooled_projections=torch.zeros(2, 16), return_dict=False,
        )[0]  # fmt: skip

    with tap:
        run()
    features = tap.take()
    assert features.shape == (2, 3 + 6, 128)
    dispersive_loss(features).backward()
    early = model.transformer_blocks[0].ff.net[2].weight.grad
    assert early is not None
    assert bool(early.any())
    with pytest.raises(RuntimeError, match="did not run"):
        tap.take()
    tap.close()
    with pytest.raises(ValueError, match="2 single blocks"):
        tap_single_block(model, DispersiveConfig(block=9))


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match="source"):
        DispersiveConfig(source="world")
    with pytest.raises(ValueError, match="tau"):
        DispersiveConfig(tau=0)
    with pytest.raises(ValueError, match="queue"):
        DispersiveConfig(source="queue", queue=0)
