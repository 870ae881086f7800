"""The small median: single pixels go, edges and what lies beside a hole stay."""

from __future__ import annotations

import torch

from fe2e_core.median import median_of_nine


def test_single_pixels_go_and_edges_stay():
    x = torch.zeros(1, 9, 12)
    x[..., 6:] = 1.0
    mask = torch.ones_like(x, dtype=torch.bool)
    noisy = x.clone()
    noisy[0, 4, 2], noisy[0, 2, 9] = 5.0, -5.0
    assert torch.equal(median_of_nine(noisy, mask), x)


def test_what_is_masked_has_no_say():
    x = torch.ones(1, 7, 7)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[0, 2:5, 2:4] = False
    x[~mask] = 100.0
    assert torch.equal(median_of_nine(x, mask), x)
