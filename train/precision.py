"""In which dtype the small models are trained: BF16 only where the processor multiplies it in hardware."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import autocast

_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""What Linux calls the instructions, on x86 and on Arm. Without them PyTorch's BF16 is slower than its float32: eight
times for the autoencoder's channels-last convolutions on an AVX2 machine."""


def has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has BF16 multiplication; False where that cannot be read (not Linux)."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = {word for line in text.splitlines() if line.lower().startswith(("flags", "features")) for word in line.split()}
    return bool(words & _FLAGS)


def fast_autocast(device: str = "cpu") -> autocast:
    """Autocast to BF16 on a GPU, on a CPU where that is fast, and otherwise none: float32."""
    return autocast(device, torch.bfloat16, enabled=device != "cpu" or has_fast_bf16())
