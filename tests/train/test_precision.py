"""BF16 is used where the processor has it, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from train.precision import fast_autocast, has_fast_bf16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: x\nflags\t\t: fpu avx2 avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512f amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx avx2 f16c\nmodel name\t: bf16 in the name\n", False),
        ("", False),
    ],
)
def test_flags_decide(tmp_path, text, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert has_fast_bf16(path) is expected


def test_no_file_means_no(tmp_path):
    assert not has_fast_bf16(tmp_path / "none")


def test_autocast_follows_this_machine():
    with fast_autocast():
        kind = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert kind == (torch.bfloat16 if has_fast_bf16() else torch.float32)
