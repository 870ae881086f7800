"""Packing, ids and the prediction rule."""

from __future__ import annotations

import pytest
import torch

from fe2e_core.conditioning import Conditioning
from fe2e_core.packing import join_halves, pack, position_ids, predict_latents, split_halves, unpack


def test_a_token_holds_its_patch_as_channel_row_column():
    latent = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6).float()
    tokens = pack(latent)
    assert tokens.shape == (1, 6, 8)
    # Second patch of the first patch row: columns 2 and 3 of rows 0 and 1, channel after channel.
    assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]
    assert torch.equal(unpack(tokens, 4, 6), latent)


def test_odd_latents_are_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        pack(torch.zeros(1, 16, 3, 4))


def test_both_halves_have_the_same_ids_and_the_zeros_come_first():
    latent = torch.ones(2, 16, 4, 8)
    tokens, ids = join_halves(latent)
    assert tokens.shape == (2, 16, 64) and ids.shape == (2, 16, 3)
    assert not tokens[:, :8].any() and tokens[:, 8:].eq(1).all()
    assert torch.equal(ids[:, :8], ids[:, 8:])
    assert position_ids(4, 8)[-1].tolist() == [0, 1, 3]


def test_depth_is_minus_left_and_normals_are_plus_right():
    prediction = torch.cat([torch.full((1, 4, 64), 2.0), torch.full((1, 4, 64), 3.0)], dim=1)
    depth, normal = split_halves(prediction, 4, 4)
    assert depth.eq(-2).all() and normal.eq(3).all()


def test_the_transformer_is_asked_once_at_t_exactly_one():
    calls = []

    def velocity(tokens, ids, context, context_ids, timestep, pooled):
        calls.append((context.shape, context_ids.any().item(), timestep.tolist(), pooled.shape))
        return tokens

    depth, normal = predict_latents(velocity, torch.randn(3, 16, 4, 4), Conditioning(torch.randn(1, 5, 8), torch.randn(1, 7)))
    assert calls == [((3, 5, 8), False, [1.0, 1.0, 1.0], (3, 7))]
    assert not depth.any() and normal.any()
