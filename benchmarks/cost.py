"""The paper's Table 7 for every resolution: operations, latency and memory of the reference's procedure and of ours.

    python -m benchmarks.cost [--sizes 256x192 384x288 512x384] [--minutes 9] [--write]
    python -m benchmarks.cost --counted     # at once: measures nothing

Counted at the released size, then counted and measured at one sixteenth of its cost on the CPU. Every contender lives in a
process of its own, so that its peak memory is its own, and they take turns, so that a slow moment of the machine hits
all of them. As many rounds are run as fit into --minutes, at least one.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from benchmarks import models
from benchmarks.contenders import Variant, build, watch_text_tokens
from benchmarks.macs import (
    autoencoder_parameters,
    connector_parameters,
    image_tokens,
    ours_counted,
    reference_counted,
    transformer_macs,
    transformer_parameters,
)
from benchmarks.report import Table, comfyui_version, machine, section, versions
from benchmarks.sizes import RELEASED, SIXTEENTH, TINY, ModelSize
from benchmarks.timing import Clock, PeakMemory, memory_now
from tests.harness import inprocess

logger = logging.getLogger(__name__)

#: Height and width of a picture in pixels, multiples of 16.
Shape = tuple[int, int]

VARIANTS = {
    "reference": Variant("reference's procedure", "fp32", reference=True),
    "ours": Variant("ours: one copy, cached conditioning", "fp32", folded=False),
    "folded": Variant("ours, folded", "fp32"),
    "fp8": Variant("ours, folded, fp8", "fp8_e4m3fn"),
}
RELEASED_SHAPES: tuple[Shape, ...] = ((384, 512), (576, 768), (768, 1024), (1152, 1536), (1536, 2048))


@dataclass(frozen=True)
class Ready:
    """What a contender says once it is built: bytes of its weights, text tokens that its transformer sees."""

    weights: int
    text_tokens: int
    versions: str


@dataclass(frozen=True)
class Run:
    """One picture: seconds on the wall and of the processor, peak bytes above the process without a model (own pages)."""

    seconds: float
    processor: float
    peak: int


def counted_macs(variant: Variant, size: ModelSize, shape: Shape, merged: bool) -> int:
    """MACs of one picture, picture to geometry. merged: identical text tokens are one token, in ours."""
    if variant.reference:
        return reference_counted(size, *shape).total
    return ours_counted(size, *shape, merged, variant.folded).total


def counted_weights(variant: Variant, size: ModelSize, element: int) -> int:
    """Bytes of all weights that a variant keeps. element: bytes of one that is not quantised; the autoencoder is
    float32. In eight bits are the Linears of the blocks, without their scales, which are few.
    """
    autoencoder = 4 * autoencoder_parameters(size.vae_width)
    if variant.reference:
        return element * (transformer_parameters(size) + connector_parameters(size)) + autoencoder
    parameters = transformer_parameters(size, variant.folded)
    constant = 4 * (size.text_tokens * size.context_width + size.pooled + size.hidden)
    eight_bits = 12 * (2 * size.doubles + size.singles) * size.hidden**2 if "fp8" in variant.weight_dtype else 0
    return element * (parameters - eight_bits) + eight_bits + constant + autoencoder


def exponent(shapes: Sequence[Shape], values: Sequence[float]) -> float:
    """p of the power law values ~ pixels^p between the first and the last shape; nan where there is only one."""
    pixels = [math.prod(shape) for shape in shapes]
    if pixels[0] == pixels[-1]:
        return math.nan
    return math.log(values[-1] / values[0]) / math.log(pixels[-1] / pixels[0])


def counted_table(size: ModelSize, shapes: Sequence[Shape], merged: bool, element: int) -> Table:
    """T MACs of one picture by resolution, how they grow, and GiB of weights.

    Text tokens, of which there are always as many, make small pictures grow by less than their pixels; attention makes
    large ones grow by more.
    """
    rows = []
    for variant in VARIANTS.values():
        macs = [counted_macs(variant, size, shape, merged) for shape in shapes]
        cells = [f"{value / 1e12:,.3f}" if value < 1e13 else f"{value / 1e12:,.1f}" for value in macs]
        weights = counted_weights(variant, size, element) / 2**30
        growth = (exponent(shapes[part], macs[part]) for part in (slice(0, 2), slice(-2, None)))
        rows.append([variant.title, *cells, " / ".join(f"{value:.2f}" for value in growth), f"{weights:.2f}"])
    return Table(["T MACs a picture", *map(named, shapes), "exponent in pixels, first / last step", "weights, GiB"], rows)


def latency_table(size: ModelSize, shapes: Sequence[Shape], found: Mapping[str, Mapping[Shape, Sequence[Run]]],
                  merged: bool) -> Table:  # fmt: skip
    """Median seconds by resolution; at the largest how many times faster than the reference's procedure."""
    rows, largest = [], shapes[-1]
    base = {"wall": _seconds(found["reference"][largest]), "busy": _seconds(found["reference"][largest], True)}
    base["macs"] = counted_macs(VARIANTS["reference"], size, largest, merged)
    for name, runs in found.items():
        seconds = [_seconds(runs[shape]) for shape in shapes]
        macs = [counted_macs(VARIANTS[name], size, shape, merged) for shape in shapes]
        faster = (base["wall"] / seconds[-1], base["busy"] / _seconds(runs[largest], True), base["macs"] / macs[-1])
        rows.append([VARIANTS[name].title, *(f"{value:.2f}" for value in seconds),
                     " / ".join(f"{value:.2f}" for value in faster),
                     f"{exponent(shapes, seconds):.2f} / {exponent(shapes, macs):.2f}"])  # fmt: skip
    return Table(["seconds, picture to geometry", *map(named, shapes),
                  f"times faster at {named(largest)}: wall / processor / counted",
                  "exponent in pixels: measured / counted"], rows)  # fmt: skip


def memory_table(shapes: Sequence[Shape], ready: Mapping[str, Ready],
                 found: Mapping[str, Mapping[Shape, Sequence[Run]]]) -> Table:  # fmt: skip
    """MiB: weights, and the peak of a process while it takes a picture."""
    rows = []
    base = max(run.peak for run in found["reference"][shapes[-1]])
    for name, runs in found.items():
        # of the first round, when sizes only grew: later a process may keep pages of a larger picture
        peaks = [runs[shape][0].peak for shape in shapes]
        pixels = (math.prod(shapes[-1]) - math.prod(shapes[0])) / 1e6
        slope = (peaks[-1] - peaks[0]) / 2**20 / pixels if pixels else math.nan
        rows.append([VARIANTS[name].title, f"{ready[name].weights / 2**20:,.0f}",
                     *(f"{peak / 2**20:,.0f}" for peak in peaks), f"{slope:,.0f}",
                     f"{peaks[-1] / base:.2f}" if base else "-"])  # fmt: skip
    return Table(["memory, MiB", "weights", *(f"peak at {named(shape)}" for shape in shapes),
                  "growth for each megapixel", f"share of the reference's at {named(shapes[-1])}"], rows)  # fmt: skip


def named(shape: Shape) -> str:
    return f"{shape[1]}x{shape[0]}"


def _seconds(runs: Sequence[Run], processor: bool = False) -> float:
    return statistics.median(run.processor if processor else run.seconds for run in runs)


def serve(pipe: Connection, name: str, size: ModelSize) -> None:
    """A process of its own: builds the contender, says that it is Ready, then answers each Shape with a Run, until
    None comes. What it answers first is no warm-up.
    """
    inprocess.import_comfyui(flags=("--cpu",))
    before = memory_now().get("own", 0)
    with torch.inference_mode():
        contender = build(VARIANTS[name], size, torch.float32, "cpu")
    gc.collect()
    with watch_text_tokens(contender) as seen:
        contender.latents(models.picture(32, 32), Clock())
    pipe.send(Ready(contender.weight_bytes(), seen[0], comfyui_version()))
    while (shape := pipe.recv()) is not None:
        image, clock = models.picture(*shape), Clock()
        with PeakMemory() as memory:
            contender(image, clock)
        pipe.send(Run(clock.total, sum(clock.processor.values()), memory.peak.get("own", before) - before))


def measure(
    size: ModelSize, shapes: Sequence[Shape], minutes: float
) -> tuple[dict[str, Ready], dict[str, dict[Shape, list[Run]]]]:
    """All contenders on all shapes, as many rounds as fit into `minutes` (building included), at least one. Raises
    RuntimeError when a contender's process ends.
    """
    start = time.monotonic()
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in VARIANTS:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, name, size), daemon=True))
        processes[-1].start()
        theirs.close()

    def ask(name: str, shape: Shape | None = None) -> Ready | Run:
        try:
            if shape is not None:
                pipes[name].send(shape)
            return pipes[name].recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process of '{VARIANTS[name].title}' ended; its error stands above") from error

    ready = {name: ask(name) for name in VARIANTS}
    for name in VARIANTS:
        ask(name, shapes[0])  # kernels are chosen, threads started
    found = {name: {shape: [] for shape in shapes} for name in VARIANTS}
    names, number, last = list(VARIANTS), 0, 0.0
    while number == 0 or time.monotonic() - start + last < 60 * minutes:
        began = time.monotonic()
        for shape in shapes:
            for name in names:
                found[name][shape].append(ask(name, shape))
                logger.info("%s, %s: %s", VARIANTS[name].title, named(shape), found[name][shape][-1])
        names = names[1:] + names[:1]  # another one begins each round
        number, last = number + 1, time.monotonic() - began
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return ready, found


def paper_line() -> str:
    """Where the paper's count stands in ours."""
    tokens = image_tokens(768, 1024)
    both, one = (transformer_macs(RELEASED, n, RELEASED.text_tokens) / 1e12 for n in (tokens, tokens // 2))
    return (
        f"The paper's Table 7 prints 28.9 T MACs and 1.78 s. The transformer's pass over both halves of a 1024x768 picture "
        f"counts {both:.1f} T; over the tokens of one half it would be {one:.1f} T, which is also what both halves take at 768x512."
    )


def parse_shape(text: str) -> Shape:
    """'512x384' -> (384, 512). Raises argparse.ArgumentTypeError."""
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        width = height = 0
    if min(width, height) < 16 or width % 16 or height % 16:
        raise argparse.ArgumentTypeError(f"found '{text}', expected WIDTHxHEIGHT in multiples of 16, such as 512x384")
    return height, width


def counted_text() -> list[str]:
    """What needs no measurement, for the released size."""
    return [
        "Counted by formula for the released size, weights in bfloat16 (the autoencoder in float32), all "
        f"{RELEASED.text_tokens} text tokens:",
        counted_table(RELEASED, RELEASED_SHAPES, False, 2).markdown(),
        paper_line(),
    ]


def measured_text(size: ModelSize, shapes: Sequence[Shape], ready: Mapping[str, Ready],
                  found: Mapping[str, Mapping[Shape, Sequence[Run]]]) -> list[str]:  # fmt: skip
    tokens = ready["folded"].text_tokens
    merged = tokens < size.text_tokens
    return [
        f"Measured on the CPU, {size.name} size, weights in float32, in turns after a warm-up, medians of "
        f"{len(found['folded'][shapes[0]])}. Ours sends {tokens} of {size.text_tokens} text tokens through the transformer. "
        "Picture to geometry, autoencoder included. fp8 is stored in eight bits and multiplied in float32, as a CPU has no such "
        "products: it saves memory and costs time.",
        counted_table(size, shapes, merged, 4).markdown(),
        latency_table(size, shapes, found, merged).markdown(),
        memory_table(shapes, ready, found).markdown(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=parse_shape, default=[(192, 256), (288, 384), (384, 512)],
                        metavar="WxH", help="smallest first")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9, help="begin no round that would end later than this")
    parser.add_argument("--counted", action="store_true", help="only what is counted, at once")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to check this script")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    text, where = counted_text(), ""
    if not arguments.counted:
        size, shapes = TINY if arguments.tiny else SIXTEENTH, sorted(set(arguments.sizes), key=math.prod)
        load = f", load average {os.getloadavg()[0]:.1f} before the run" if hasattr(os, "getloadavg") else ""
        ready, found = measure(size, shapes, arguments.minutes)
        text += measured_text(size, shapes, ready, found)
        threads = f"{torch.get_num_threads()} threads"
        where = ", ".join((machine() + load, threads, versions("torch"), ready["folded"].versions))
    command = " ".join(["python -m benchmarks.cost", *sys.argv[1:]])
    section("cost", "Cost by resolution (the paper's Table 7)", "\n\n".join(text), command, arguments.write, where)


if __name__ == "__main__":
    main()
