"""Whether merged context tokens pay for the mask they need: the measurement behind `nodes/backend.py`'s rule.

    python -m benchmarks.merging [--heads 2] [--device cpu|cuda] [--dtype float32]

Times ComfyUI's attention functions on all tokens without a mask, and on merged tokens with and without one; the
release has 640 text tokens of which a few dozen differ. Run it on a device before adding the device to the rule.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

TEXT, MERGED = 640, 33
SIZES = {"512x384": 1536, "1024x768": 6144}


def seconds(run: Callable[[], Tensor], device: torch.device, repetitions: int) -> float:
    """Median; on a CPU of the processor's time, so that other programs do not count."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    run()
    taken = []
    for _ in range(repetitions):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=2, help="attention heads of 128; the release has 24")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    options = parser.parse_args()
    from tests.harness.inprocess import import_comfyui, pack_module

    import_comfyui()
    import comfy.ldm.modules.attention as attention

    names = pack_module("nodes.backend").MASK_ATTENTION
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    print(f"{device}, {dtype}, {options.heads} heads, {torch.get_num_threads()} threads, torch {torch.__version__}; "
          f"ComfyUI's choice here: {attention.optimized_attention.__name__}")
    print("| size | attention | all tokens (ms) | merged, no mask | merged, mask | mask costs | merging saves |")
    print("|---|---|---|---|---|---|---|")
    for size in options.sizes:
        for name in names:
            if name == "attention_basic" and SIZES[size] > 4000:
                continue  # its score matrix alone would fill the memory
            function = getattr(attention, name)

            def timed(tokens: int, mask: Tensor | None, function=function) -> float:
                q, k, v = (torch.randn(1, options.heads, tokens, 128, device=device, dtype=dtype) for _ in range(3))
                return seconds(lambda: function(q, k, v, options.heads, skip_reshape=True, mask=mask), device,
                               options.repetitions)

            merged = MERGED + SIZES[size]
            mask = torch.zeros(1, 1, 1, merged, device=device, dtype=dtype)
            mask[..., MERGED - 1] = 6.4
            everything, bare, masked = timed(TEXT + SIZES[size], None), timed(merged, None), timed(merged, mask)
            print(f"| {size} | {name} | {1e3 * everything:.1f} | {1e3 * bare:.1f} | {1e3 * masked:.1f} | "
                  f"{100 * (masked / bare - 1):+.0f} % | {100 * (1 - masked / everything):.0f} % |", flush=True)


if __name__ == "__main__":
    main()
