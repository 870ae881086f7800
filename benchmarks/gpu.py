"""GPU: true-size random weights at 1024x768, the reference's procedure against ours.

    python -m benchmarks.gpu [--variants reference bf16 fp8-fast-compiled] [--write]

Each variant is built, warmed up, measured and dropped before the next, so that a card need hold only one.
Latency by stage, peak memory on the card, and the share that the transformer stage reaches of the matrix
product rate measured on this machine in bfloat16. ComfyUI runs with its default flags unless
--comfyui-flags says otherwise. Without a CUDA GPU only `--tiny` runs, on the CPU, to check the script.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import models
from benchmarks.contenders import Variant, build, watch_text_tokens
from benchmarks.macs import image_tokens, reference_counted, transformer_macs
from benchmarks.report import Table, comfyui_version, machine, section, versions
from benchmarks.sizes import RELEASED, TINY, ModelSize
from benchmarks.timing import Clock, interleave, medians
from tests.harness import inprocess

logger = logging.getLogger(__name__)

NOT_MEASURED = "not measured on a GPU"
STAGES = ("encode", "connector", "transformer", "decode", "geometry")


VARIANTS = {
    "reference": Variant("reference's procedure, bf16", "bf16", reference=True),
    "bf16": Variant("ours, bf16", "bf16"),
    "fp8": Variant("ours, fp8", "fp8_e4m3fn"),
    "bf16-compiled": Variant("ours, bf16, compiled", "bf16", compiled=True),
    "fp8-fast": Variant("ours, fp8 products", "fp8_e4m3fn_fast"),
    "fp8-fast-compiled": Variant("ours, fp8 products, compiled", "fp8_e4m3fn_fast", compiled=True),
}
#: Project bounds: the transformer stage against the reference's, and the peak in GiB, by weight dtype.
REQUIRED_RATIO = {"bf16": 2.0, "fp8": 2.8}
REQUIRED_PEAK_GIB = {"bf16": 22.0, "fp8": 11.0}
REQUIRED_SHARE = 0.6


@dataclass(frozen=True)
class Measured:
    """One variant: median seconds by stage ("whole" for all), peak bytes on the card, text tokens in the
    transformer.
    """

    variant: Variant
    seconds: dict[str, float]
    peak: int
    text_tokens: int


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matmul_rate(side: int, repetitions: int = 20) -> float:
    """Best measured FLOP/s of a square bfloat16 matrix product on this machine: what the share is a share
    of.
    """
    where = device()
    a, b = (torch.randn(side, side, device=where).to(torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(repetitions):
        synchronize()
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        synchronize()
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * side**3 / best


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.inference_mode()  # as ComfyUI runs its nodes, loaders too
def measure(variant: Variant, size: ModelSize, height: int, width: int, repetitions: int) -> Measured:
    """Build, warm up twice (kernels, compilation), measure, drop."""
    contender = build(variant, size, torch.bfloat16, str(device()))
    image = models.picture(height, width)
    with watch_text_tokens(contender) as seen:
        contender(image, Clock(synchronize))
    contender(image, Clock(synchronize))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    runs = {variant.title: partial(contender, image)}
    clocks = interleave(runs, repetitions, synchronize)[variant.title]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    result = Measured(variant, medians(clocks), peak, seen[0])
    logger.info("%s: %s", variant.title, result)
    del contender, runs
    drop_models()
    return result


def drop_models() -> None:
    """Everything off the card, so that the next variant starts with an empty one."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def stage_table(found: Sequence[Measured]) -> Table:
    rows = [
        [m.variant.title, *(f"{m.seconds.get(s, 0.0):.3f}" for s in (*STAGES, "whole")), largest_cost(m)]
        for m in found
    ]
    return Table(["seconds, median", *STAGES, "whole", "largest cost"], rows)


def largest_cost(measured: Measured) -> str:
    stages = {name: seconds for name, seconds in measured.seconds.items() if name != "whole"}
    return max(stages, key=stages.get)


def transformer_table(
    found: Sequence[Measured], size: ModelSize, height: int, width: int, rate: float
) -> Table:
    """Connector + transformer: ratio to the reference's, share of the matmul rate, peak memory."""
    counted = reference_counted(size, height, width)
    reference = next((m for m in found if m.variant.reference), None)
    rows = []
    for m in found:
        macs = transformer_macs(
            size, image_tokens(height, width), m.text_tokens, folded=not m.variant.reference
        )
        macs = counted.connector + counted.transformer if m.variant.reference else macs
        seconds = m.seconds.get("connector", 0.0) + m.seconds["transformer"]
        cells = [m.variant.title, str(m.text_tokens)]
        if reference is not None:
            base = reference.seconds["connector"] + reference.seconds["transformer"]
            cells += [f"{base / seconds:.2f}", f"{(counted.connector + counted.transformer) / macs:.2f}"]
        else:
            cells += ["-", "-"]
        cells += [f"{2 * macs / seconds / 1e12:.1f}", f"{2 * macs / seconds / rate:.0%}"]
        rows.append([*cells, f"{m.peak / 2**30:.1f}" if m.peak else NOT_MEASURED])
    header = ["connector + transformer", "text tokens", "measured ratio", "counted ratio", "TFLOP/s"]
    return Table([*header, "of the measured bf16 matmul rate", "peak GiB"], rows)


def verdict(found: Sequence[Measured], size: ModelSize, height: int, width: int, rate: float) -> str:
    """The project's bounds, held or not, for each of our variants."""
    reference = next((m for m in found if m.variant.reference), None)
    lines = []
    for m in found:
        if m.variant.reference:
            continue
        dtype, seconds = m.variant.weight_dtype.split("_")[0], m.seconds["transformer"]
        macs = transformer_macs(size, image_tokens(height, width), m.text_tokens, folded=True)
        checks = [
            (
                f"{2 * macs / seconds / rate:.0%} of the matmul rate",
                2 * macs / seconds / rate >= REQUIRED_SHARE,
            )
        ]
        if reference is not None:
            ratio = (reference.seconds["connector"] + reference.seconds["transformer"]) / seconds
            checks.append(
                (f"{ratio:.2f} times (at least {REQUIRED_RATIO[dtype]})", ratio >= REQUIRED_RATIO[dtype])
            )
        if m.peak:
            peak = m.peak / 2**30
            checks.append(
                (f"peak {peak:.1f} GiB (under {REQUIRED_PEAK_GIB[dtype]:g})", peak < REQUIRED_PEAK_GIB[dtype])
            )
        lines.append(
            f"- {m.variant.title}: "
            + "; ".join(f"{t}, {'held' if held else 'NOT HELD'}" for t, held in checks)
        )
    return "\n".join(lines)


def describe_device() -> str:
    if not torch.cuda.is_available():
        return machine()
    properties = torch.cuda.get_device_properties(0)
    card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{card}, in {machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 768], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument(
        "--matmul-side", type=int, default=8192, help="side of the square product that gives the rate"
    )
    parser.add_argument("--comfyui-flags", default="", help="ComfyUI's command line, for all variants")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU if there is no GPU")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    title = "GPU, true size"
    if not torch.cuda.is_available() and not arguments.tiny:
        rows = [[variant.title, *[NOT_MEASURED] * 4] for variant in VARIANTS.values()]
        header = [
            "1024x768, true size",
            "transformer",
            "whole",
            "of the matmul rate",
            "peak GiB",
        ]
        text = Table(header, rows).markdown() + "\n\n`--tiny` checks the script without one."
        section("gpu", title, text, command, arguments.write)
        return
    if not torch.cuda.is_available() and arguments.write:
        raise SystemExit("--write needs a CUDA GPU: figures of a CPU do not belong into the GPU section")
    flags = arguments.comfyui_flags.split()
    inprocess.import_comfyui(flags=flags if torch.cuda.is_available() else ["--cpu", *flags])
    size, (width, height) = TINY if arguments.tiny else RELEASED, arguments.size
    with torch.inference_mode():
        rate = matmul_rate(arguments.matmul_side)
    found = [
        measure(VARIANTS[name], size, height, width, arguments.repetitions) for name in arguments.variants
    ]
    text = [
        f"One {width}x{height} picture, random weights of the {size.name} size, {arguments.repetitions} "
        f"repetitions after two warm-up runs, one variant after the other. ComfyUI's flags: "
        f"`{arguments.comfyui_flags or 'none'}`. Measured matrix product rate in bfloat16: "
        f"{rate / 1e12:.2f} TFLOP/s ({arguments.matmul_side} square).",
        stage_table(found).markdown(),
        transformer_table(found, size, height, width, rate).markdown(),
        verdict(found, size, height, width, rate),
    ]
    where = ", ".join((describe_device(), versions("torch"), comfyui_version()))
    section("gpu", title, "\n\n".join(text), command, arguments.write, where)


if __name__ == "__main__":
    main()
