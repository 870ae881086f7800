"""Merging identical context tokens: exact, counted, stable."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fe2e_core.merging import merge_tokens


def context(dtype: torch.dtype, real: int = 5, padding: int = 608, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(real, width, generator=generator)
    pad = torch.randn(1, width, generator=generator).expand(padding, -1)
    return torch.cat([rows, pad])[None].to(dtype)


def attention(text, picture, mask=None) -> torch.Tensor:
    """Float64 self-attention of [text | picture], the picture's rows of the result."""
    x = torch.cat([text, picture], dim=1).double()[:, None]
    mask = None if mask is None else mask.double()
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)[:, 0, text.shape[1]:]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-4), (torch.float16, 2e-4)]
)
def test_merged_tokens_weigh_what_they_weighed(dtype, tolerance):
    text = context(dtype)
    picture = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(4)).to(dtype)
    merged = merge_tokens(text)
    assert merged.before == 613
    assert merged.context.shape[1] <= 7
    weights = merged.log_counts.double().exp()
    assert float(weights.sum()) == pytest.approx(613, rel=2e-4)
    # The weights are used in the dtype of the computation, so they have to be its numbers.
    assert torch.equal(merged.log_counts.to(dtype).float(), merged.log_counts)
    expected = attention(text, picture)
    masked = attention(merged.context, picture, merged.mask(40, dtype))
    torch.testing.assert_close(masked, expected, atol=tolerance, rtol=0)
    # The mask is what makes them equal.
    assert (attention(merged.context, picture) - expected).abs().max() > 100 * tolerance


def test_order_counts_and_signed_zero():
    rows = torch.tensor([[1.0, 0.0], [2.0, 3.0], [1.0, -0.0], [4.0, 5.0], [2.0, 3.0], [1.0, 0.0]])
    merged = merge_tokens(rows[None])
    torch.testing.assert_close(merged.context[0], torch.tensor([[1.0, 0.0], [2.0, 3.0], [4.0, 5.0]]))
    torch.testing.assert_close(merged.log_counts.exp(), torch.tensor([3.0, 2.0, 1.0]))


def test_nearly_equal_rows_stay_apart():
    rows = torch.ones(2, 4)
    rows[1, 3] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert merge_tokens(rows[None]).context.shape[1] == 2


def test_the_choice_depends_on_counts_only():
    merged = merge_tokens(context(torch.float32))
    assert merged.saves(1536)
    assert not merged.saves(10**6)
    assert not merge_tokens(torch.randn(1, 12, 8)).saves(96)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected \(1, tokens, width\)"):
        merge_tokens(torch.zeros(2, 3, 4))
