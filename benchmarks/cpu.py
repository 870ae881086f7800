"""CPU: the reference's procedure against ours at one sixteenth of the cost, in one run.

    python -m benchmarks.cpu [--reference CHECKOUT] [--repetitions 3] [--write]

Width 768 with 19 + 38 blocks, connector 896 -> 1024, 640 text tokens of which 32 are real, autoencoder
width 32, random weights, one 512x384 picture: every proportion of the release but the width. Contenders run
in turn, each stage on its own clock; medians are printed with the ratio of counted operations beside each
measured ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping

import torch

from benchmarks import models
from benchmarks.contenders import watch_text_tokens
from benchmarks.macs import Counted, ours_counted, reference_counted
from benchmarks.ours import OurProcedure
from benchmarks.reference_checkout import ReferenceCheckout
from benchmarks.reference_procedure import ReferenceProcedure
from benchmarks.report import Table, comfyui_version, machine, section, versions
from benchmarks.sizes import SIXTEENTH, TINY, ModelSize
from benchmarks.timing import Clock, PeakMemory, interleave, medians, memory_now
from tests.harness import inprocess

logger = logging.getLogger(__name__)

OURS, PROCEDURE, CHECKOUT = "ours", "reference's procedure", "reference checkout"
STAGES = ("encode", "connector", "transformer", "decode", "geometry")
TORCH_DTYPES = {"default": None, "fp32": torch.float32, "bf16": torch.bfloat16}
#: Must-show bounds of the project: transformer and picture-to-geometry at least so many times faster,
#: weights at most.
REQUIRED = {"transformer": 2.1, "whole": 1.8, "weights": 0.7}


def build(names: tuple[str, ...], size: ModelSize, dtype: str, checkout: str | None) -> Mapping[str, object]:
    """The named contenders over one set of weights, which they share as far as their formats allow."""
    backend = inprocess.pack_module("nodes.backend")
    torch_dtype = TORCH_DTYPES[dtype]
    drawn = models.transformer(size, torch_dtype or torch.float32)
    tensors = dict(drawn) if len(names) > 1 else drawn
    vae_tensors, prompt = dict(models.autoencoder(size)), models.prompt(size)
    built: dict[str, object] = {}
    for name in names:
        if name == CHECKOUT:
            built[name] = ReferenceCheckout(
                checkout,
                size,
                tensors,
                vae_tensors,
                prompt,
                torch_dtype or torch.float32,
                torch.device("cpu"),
            )
        elif name == PROCEDURE:
            built[name] = ReferenceProcedure(
                size, tensors, backend.build_vae(vae_tensors), prompt, torch_dtype
            )
        else:
            built[name] = OurProcedure(
                size, tensors, backend.build_vae(vae_tensors), prompt, dtype, inprocess.pack_module
            )
    return built


def agreement(contenders: Mapping[str, object], height: int, width: int) -> dict[str, float]:
    """Largest difference of each contender's latents from ours, relative to the root mean square of ours."""
    image = models.picture(height, width)
    latents = {name: contender.latents(image, Clock()) for name, contender in contenders.items()}
    scale = torch.cat([x.flatten() for x in latents[OURS]]).square().mean().sqrt()
    return {
        name: max(
            float((a.float() - b).abs().max() / scale) for a, b in zip(found, latents[OURS], strict=True)
        )
        for name, found in latents.items()
    }


def child(name: str, arguments: argparse.Namespace, size: ModelSize) -> dict[str, int]:
    """Peak memory of one picture by one contender alone, in a process of its own: bytes "own" and "all"."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.cpu",
        "--child",
        name,
        "--dtype",
        arguments.dtype,
        "--size",
        *map(str, arguments.size),
    ]
    command += ["--tiny"] if size is TINY else []
    command += ["--reference", arguments.reference] if arguments.reference else []
    command += [f"--comfyui-flags={arguments.comfyui_flags}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the memory run of {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_child(arguments: argparse.Namespace, size: ModelSize) -> None:
    """What `child` runs: builds one contender, takes one picture, prints the peak while it does as JSON.

    Counted from before the weights were there; loading has its own peaks and its own benchmark.
    """
    before = memory_now()
    contender = build((arguments.child,), size, arguments.dtype, arguments.reference)[arguments.child]
    gc.collect()
    with PeakMemory() as memory:
        contender(models.picture(*reversed(arguments.size)), Clock())
    print(json.dumps({name: memory.peak[name] - before[name] for name in memory.peak}))


def comparison(
    found: Mapping[str, list[Clock]], against: str, counted: tuple[Counted, Counted], merged: bool
) -> Table:
    """Seconds by stage of ours and of `against`, with measured and counted ratios."""
    theirs, ours = medians(found[against]), medians(found[OURS])
    theirs_busy, ours_busy = medians(found[against], True), medians(found[OURS], True)
    theirs_counted, ours_counted_ = counted
    groups = {stage: (stage,) for stage in STAGES} | {"connector + transformer": ("connector", "transformer")}
    groups["picture to geometry"] = STAGES
    rows = []
    for title, stages in groups.items():
        key = ("whole",) if stages == STAGES else stages
        wall, busy = ([sum(m.get(s, 0.0) for s in key) for m in pair] for pair in
                      ((theirs, ours), (theirs_busy, ours_busy)))  # fmt: skip
        macs = [sum(getattr(c, s, 0) for s in stages) for c in (theirs_counted, ours_counted_)]
        cells = [f"{pair[0] / pair[1]:.2f}" if pair[1] else "-" for pair in (wall, busy, macs)]
        rows.append([title, f"{wall[0]:.2f}", f"{wall[1]:.2f}", *cells])
    kind = "merged text tokens" if merged else "text tokens not merged"
    header = [
        "seconds, median",
        against,
        f"ours ({kind})",
        "measured ratio",
        "of processor time",
        "counted ratio",
    ]
    return Table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reference", help="root of a checkout of the reference implementation, to be measured too"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=[512, 384], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--dtype", choices=list(TORCH_DTYPES), default="fp32")
    parser.add_argument("--comfyui-flags", default="", help="further command line of ComfyUI, for both sides")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory runs out")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to check this script")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else SIXTEENTH
    inprocess.import_comfyui(flags=("--cpu", *arguments.comfyui_flags.split()))
    if arguments.child:
        measure_child(arguments, size)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(arguments, size)


def run(arguments: argparse.Namespace, size: ModelSize) -> None:
    # A busy machine shows here; the ratio of processor times is then the better one.
    load = f", load average {os.getloadavg()[0]:.1f} before the run" if hasattr(os, "getloadavg") else ""
    width, height = arguments.size
    names = (OURS, PROCEDURE, *((CHECKOUT,) if arguments.reference else ()))
    memory = {} if arguments.no_memory else {name: child(name, arguments, size) for name in names}
    contenders = build(names, size, arguments.dtype, arguments.reference)
    with watch_text_tokens(contenders[OURS]) as seen:
        contenders[OURS].latents(models.picture(32, 32), Clock())
    text_tokens = seen[0]
    merged = text_tokens < size.text_tokens
    # The first run of each also warms it up: kernels are chosen, the checkout compiles its fused functions.
    difference = agreement(contenders, height, width)
    image = models.picture(height, width)
    found = interleave(
        {name: (lambda clock, c=c: c(image, clock)) for name, c in contenders.items()},
        arguments.repetitions,
        on_run=lambda name, clock: logger.info("%s: %.2f s %s", name, clock.total, clock.seconds),
    )
    flags = ["--cpu", *arguments.comfyui_flags.split()]
    counted = reference_counted(size, height, width), ours_counted(size, height, width, merged)

    where = ", ".join(
        (machine() + load, f"{torch.get_num_threads()} threads", versions("torch"), comfyui_version())
    )
    command = " ".join(
        ["python -m benchmarks.cpu", *(a if os.sep not in a else "CHECKOUT" for a in sys.argv[1:])]
    )
    text = [
        f"One {width}x{height} picture, weights {arguments.dtype}, {arguments.repetitions} interleaved "
        f"repetitions after a warm-up. {size.text_tokens} text tokens, of which ours sends {text_tokens} "
        f"through the transformer. ComfyUI's flags, the same for both: `{' '.join(flags)}`."
    ]
    text.append(comparison(found, PROCEDURE, counted, merged).markdown())
    text.append(verdict(found, contenders))
    rows = []
    for name, contender in contenders.items():
        weights = contender.weight_bytes()
        peak = memory.get(name, {})
        rows.append(
            [
                name,
                f"{weights / 2**20:,.0f}",
                f"{contenders[OURS].weight_bytes() / weights:.3f}",
                *(f"{peak[k] / 2**20:,.0f}" if k in peak else "-" for k in ("own", "all")),
            ]
        )
    text.append(
        Table(
            [
                "memory, MiB",
                "weights",
                "ours / this",
                "peak of a process, its own pages",
                "peak, with file pages",
            ],
            rows,
        ).markdown()
    )
    text.append(
        "Latents, largest difference from ours relative to their root mean square: "
        + ", ".join(f"{name} {value:.1e}" for name, value in difference.items() if name != OURS)
        + "."
    )
    section("cpu", "CPU, one sixteenth of the cost", "\n\n".join(text), command, arguments.write, where)
    if CHECKOUT in contenders:
        text = [
            "The same run against the reference's own modules: flash attention and RMS norm replaced by "
            "torch's, the posterior's mean instead of a sample, its fused functions compiled as it asks for.",
            comparison(found, CHECKOUT, counted, merged).markdown(),
        ]
        section(
            "checkout",
            "CPU, against a checkout of the reference",
            "\n\n".join(text),
            command,
            arguments.write,
            where,
        )


def verdict(found: Mapping[str, list[Clock]], contenders: Mapping[str, object]) -> str:
    """The project's bounds and whether this run holds them."""
    reference, ours = medians(found[PROCEDURE]), medians(found[OURS])
    measured = {
        "transformer": reference["transformer"] / ours["transformer"],
        "whole": reference["whole"] / ours["whole"],
        "weights": contenders[OURS].weight_bytes() / contenders[PROCEDURE].weight_bytes(),
    }
    lines = []
    for name, title in (
        ("transformer", "transformer stage alone, times faster"),
        ("whole", "picture to geometry, times faster"),
        ("weights", "weight memory, share"),
    ):
        held = measured[name] <= REQUIRED[name] if name == "weights" else measured[name] >= REQUIRED[name]
        bound = "at most" if name == "weights" else "at least"
        lines.append(
            f"- {title}: {measured[name]:.3f} ({bound} {REQUIRED[name]}: {'held' if held else 'NOT HELD'})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
