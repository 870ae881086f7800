"""GPU: true-size random weights at 1024x768, the reference's procedure against ours.

    python -m benchmarks.gpu [--variants reference bf16 fp8-fast-compiled] [--out FILE] [--write]
    python -m benchmarks.gpu --from-json FILE [FILE ...] --write
    python -m benchmarks.gpu --from-json benchmarks/records/gpu.json benchmarks/records/gpu2.json --write

The last one writes the sections of docs/benchmarks.md again from the records that are kept.
Each variant is built, warmed up, measured and dropped before the next, so that a card need hold only one, and its
figures are in `--out` as soon as it is done: `--from-json` makes the tables of them, on another machine if need be, a section
for each file.
Latency by stage, peak memory on the card, and the share that the transformer stage reaches of the matrix
product rate measured on this machine in bfloat16. ComfyUI runs with its default flags unless
--comfyui-flags says otherwise. Without a CUDA GPU only `--tiny` runs, on the CPU, to check the script.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from benchmarks.contenders import Variant
from benchmarks.gpu_measuring import Measured, Record, drop_models, matmul_rate, measure
from benchmarks.macs import image_tokens, reference_counted, transformer_macs
from benchmarks.report import ROOT, Table, comfyui_version, holds_measurement, machine, section, versions
from benchmarks.sizes import RELEASED, TINY, ModelSize
from tests.harness import inprocess

logger = logging.getLogger(__name__)

NOT_MEASURED = "not measured on a GPU"
STAGES = ("encode", "connector", "transformer", "decode", "geometry")
GIB = 2**30
#: What the sections of docs/benchmarks.md were made of, in their order.
RECORDS = ("benchmarks/records/gpu.json", "benchmarks/records/gpu2.json")

#: In the order of their importance: a run that is cut short has the first ones.
VARIANTS = {
    "reference": Variant("reference's procedure, bf16", "bf16", reference=True),
    "bf16-compiled": Variant("ours, bf16, compiled by block", "bf16", compiled="blocks"),
    "fp8-fast-compiled": Variant("ours, fp8 products, compiled by block", "fp8_e4m3fn_fast", compiled="blocks"),
    "bf16": Variant("ours, bf16", "bf16"),
    "fp8-fast": Variant("ours, fp8 products", "fp8_e4m3fn_fast"),
    "fp8-fast-cudnn": Variant("ours, fp8 products, cuDNN attention", "fp8_e4m3fn_fast", attention="cudnn"),
    "bf16-cudnn": Variant("ours, bf16, compiled by block, cuDNN attention", "bf16", compiled="blocks",
                          attention="cudnn"),
    "fp8-cudnn": Variant("ours, fp8 products, compiled by block, cuDNN attention", "fp8_e4m3fn_fast",
                         compiled="blocks", attention="cudnn"),
    "fp8": Variant("ours, fp8", "fp8_e4m3fn"),
    "bf16-model": Variant("ours, bf16, compiled as a whole", "bf16", compiled="model"),
}  # fmt: skip
#: Project bounds: the transformer stage against the reference's, and the peak in GiB, by weight dtype.
REQUIRED_RATIO = {"bf16": 2.0, "fp8": 2.8}
REQUIRED_PEAK_GIB = {"bf16": 22.0, "fp8": 11.0}
REQUIRED_SHARE = 0.6
#: Cards in GiB that the uncompiled variants are also run on, by leaving only so much of the real one.
SMALL_CARD_GIB = {"bf16": 24.0, "fp8": 12.0}


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
        rows.append([*cells, f"{m.peak / GIB:.1f}" if m.peak else NOT_MEASURED])
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
            peak = m.peak / GIB
            checks.append(
                (f"peak {peak:.1f} GiB (under {REQUIRED_PEAK_GIB[dtype]:g})", peak < REQUIRED_PEAK_GIB[dtype])
            )
        lines.append(
            f"- {m.variant.title}: "
            + "; ".join(f"{t}, {'held' if held else 'NOT HELD'}" for t, held in checks)
        )
    return "\n".join(lines)


def memory_table(found: Sequence[Measured]) -> Table:
    """Peaks by stage, with everything on the card; and the peak and the time on a smaller one."""
    rows = []
    for m in found:
        cells = [f"{m.peaks[s] / GIB:.1f}" if s in m.peaks else "-" for s in ("encode", "transformer", "decode")]
        small = ["-"] * 3
        if m.small_card:
            small = [f"{m.small_card['card'] / GIB:.0f}"]
            small += [f"{m.small_card['peak'] / GIB:.1f}", f"{m.small_card['seconds']:.2f}"] if "peak" in m.small_card else ["out of memory"] * 2
        rows.append([m.variant.title, *cells, *small, f"{m.build_seconds:.0f} / {m.warm_up_seconds:.0f}"])
    header = ["peak GiB", "encode", "transformer", "decode", "with only so many GiB", "peak there", "seconds there",
              "build / warm-up s"]  # fmt: skip
    return Table(header, rows)


def describe_device() -> str:
    if not torch.cuda.is_available():
        return machine()
    properties = torch.cuda.get_device_properties(0)
    card = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{card}, in {machine()}"


def show(record: Record, write: bool, number: int = 1) -> None:
    """The section, from what was measured in the `number`-th run."""
    size = TINY if record.size == TINY.name else RELEASED
    found, height, width = record.found, record.height, record.width
    text = [
        f"One {width}x{height} picture, random weights of the {size.name} size, {record.repetitions} "
        f"repetitions after two warm-up runs, one variant after the other. ComfyUI's flags: "
        f"`{record.flags or 'none'}`; its dynamic memory, which only its server starts, is off. Measured matrix product "
        f"rate in bfloat16: {record.rate / 1e12:.2f} TFLOP/s ({record.matmul_side} square, the best of several).",
        stage_table(found).markdown(),
        transformer_table(found, size, height, width, record.rate).markdown(),
        memory_table(found).markdown(),
        verdict(found, size, height, width, record.rate),
    ]
    if any(Record.read(ROOT / kept) == record for kept in RECORDS):
        text.append(f"From its record, without measuring: `python -m benchmarks.gpu --from-json {' '.join(RECORDS)} --write`.")
    key, title = ("gpu", "GPU, true size") if number == 1 else (f"gpu{number}", f"GPU, true size, run {number}")
    section(key, title, "\n\n".join(text), record.command, write, record.where, day=record.day)


def nothing_measured(command: str, write: bool) -> None:
    """The section of a machine without a card. It never takes the place of figures: they stay as they are."""
    if write and holds_measurement("gpu"):
        logger.info("no CUDA GPU here, nothing measured: the figures in docs/benchmarks.md stay as they are")
        return
    rows = [[variant.title, *[NOT_MEASURED] * 4] for variant in VARIANTS.values()]
    header = ["1024x768, true size", "transformer", "whole", "of the matmul rate", "peak GiB"]
    text = Table(header, rows).markdown() + "\n\n`--tiny` checks the script without one."
    section("gpu", "GPU, true size", text, command, write)


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
    parser.add_argument("--out", type=Path, help="JSON file that holds what is measured so far")
    parser.add_argument("--from-json", type=Path, nargs="+", help="make the tables of such files and measure nothing")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    cuda = torch.cuda.is_available()
    if arguments.from_json is not None:
        for number, path in enumerate(arguments.from_json, 1):
            record = Record.read(path)
            if arguments.write and not record.on_gpu:
                raise SystemExit(f"{path} was measured without a CUDA GPU: it does not belong into the GPU section")
            show(record, arguments.write, number)
        return
    if not cuda and not arguments.tiny:
        nothing_measured(command, arguments.write)
        return
    if not cuda and arguments.write:
        raise SystemExit("--write needs a CUDA GPU: figures of a CPU do not belong into the GPU section")
    flags = arguments.comfyui_flags.split()
    inprocess.import_comfyui(flags=flags if cuda else ["--cpu", *flags])
    size, (width, height) = TINY if arguments.tiny else RELEASED, arguments.size
    with torch.inference_mode():
        rate = matmul_rate(arguments.matmul_side)
    where = ", ".join((describe_device(), versions("torch"), comfyui_version()))
    record = Record(
        command, date.today().isoformat(), where, cuda, size.name, width, height, arguments.repetitions,
        arguments.comfyui_flags, rate, arguments.matmul_side, [],
    )  # fmt: skip
    for name in arguments.variants:
        variant = VARIANTS[name]
        small = None if variant.reference or variant.compiled else SMALL_CARD_GIB[variant.weight_dtype.split("_")[0]]
        measured = None
        try:
            measured = measure(variant, size, height, width, arguments.repetitions, small)
        except Exception:  # the others are worth having all the same
            logger.exception("%s failed", variant.title)
        if measured is None:
            drop_models()  # not inside `except`, where the traceback still holds the model
            continue
        record = replace(record, found=[*record.found, measured])
        if arguments.out is not None:
            record.write(arguments.out)
    if record.found:
        show(record, arguments.write)
    if len(record.found) < len(arguments.variants):
        raise SystemExit(f"{len(arguments.variants) - len(record.found)} variants failed")


if __name__ == "__main__":
    main()
