"""Loading: seconds and peak host memory by format, each in a process of its own.

    python -m benchmarks.loading [--gib 3] [--folder DIR] [--write]

Synthetic files of the release's structure (by default about 3 GiB of bfloat16 transformer), written to a
temporary folder, dropped from the system's file cache and loaded. Beside our loader stands the usual one:
the whole safetensors file read into a dict, then ComfyUI's own loader, with the LoRA merged by ComfyUI's
patcher.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import models
from benchmarks.macs import connector_parameters, transformer_parameters
from benchmarks.report import Table, comfyui_version, machine, section, versions
from benchmarks.sizes import RELEASED, TINY, ModelSize
from benchmarks.timing import PeakMemory, forget_file, module_bytes
from fe2e_core.tensorfile import write_tensors
from tests.harness import inprocess
from tests.harness.golden import lora_shapes

logger = logging.getLogger(__name__)

TRANSFORMER, FP8 = "step1x.safetensors", "step1x-fp8.safetensors"
LORA, VAE, CACHE, PACKED = "lora.safetensors", "ae.safetensors", "no_info.npz", "packed.safetensors"
FILES = {
    "parts, bf16": (TRANSFORMER, VAE),
    "parts, bf16, with LoRA": (TRANSFORMER, LORA, VAE),
    "parts, fp8": (FP8, VAE),
    "packed, bf16": (PACKED,),
    "ComfyUI's loaders, bf16": (TRANSFORMER, VAE),
    "ComfyUI's loaders, bf16, with LoRA": (TRANSFORMER, LORA, VAE),
}
#: Project bound: peak above the resulting model and its largest tensor.
SPARE_GIB = 1.0


def size_of(gib: float) -> ModelSize:
    """The release's widths and proportions with as many blocks as make about so many GiB in bfloat16."""
    size = replace(
        RELEASED,
        name=f"{gib:g} GiB",
        hidden=2048,
        prompt_width=1792,
        context_width=2048,
        doubles=1,
        singles=2,
    )
    while 2 * (transformer_parameters(size) + connector_parameters(size)) < gib * 2**30:
        size = replace(size, doubles=size.doubles + 1, singles=size.singles + 2)
    return size


def write_files(folder: Path, size: ModelSize) -> None:
    """Transformer in bf16 and fp8, LoRA of rank 64, autoencoder, prompt cache: released format, random."""
    config = replace(models.golden_config(size), rank=64 if size.hidden > 1024 else 4)
    for name, tensors in (
        (TRANSFORMER, models.transformer(size, torch.bfloat16)),
        (FP8, models.transformer(size, torch.float8_e4m3fn)),
        (LORA, models.RandomWeights(lora_shapes(config), torch.bfloat16)),
        (VAE, models.autoencoder(size)),
    ):
        write_tensors(folder / name, tensors, {})
    embeds, mask = models.prompt(size)
    np.savez(folder / CACHE, embeds=embeds.numpy(), masks=mask.numpy())


def pack(folder: Path) -> None:
    """The packed checkpoint, made from the parts as 'Save FE2E Checkpoint' does."""
    loading, assembly = inprocess.pack_module("nodes.loading"), inprocess.pack_module("nodes.assembly")
    model = loading.load_parts(*_parts(folder, TRANSFORMER, None), "bf16")
    vae = {
        k: v for k, v in model.vae.get_sd().items() if not k.startswith(("quant_conv.", "post_quant_conv."))
    }
    inprocess.pack_module("fe2e_core.checkpoint").write_checkpoint(
        folder / PACKED,
        model.info,
        assembly.transformer_weights(model),
        vae,
        model.conditioning,
        model.silu_vec,
    )


def _parts(folder: Path, transformer: str, lora: str | None) -> tuple[str, str | None, float, str, str]:
    chosen = str(folder / lora) if lora else None
    return str(folder / transformer), chosen, 1.0, str(folder / VAE), str(folder / CACHE)


def loader(name: str, folder: Path) -> Callable[[], object]:
    """A function that loads in this format and returns what must stay in memory."""
    nodes = inprocess.pack_module("nodes.loading")
    if name == "packed, bf16":
        return lambda: nodes.load_checkpoint(str(folder / PACKED), None, 1.0, "bf16")
    if name.startswith("parts"):
        fp8, lora = "fp8" in name, LORA if "LoRA" in name else None
        dtype = "fp8_e4m3fn" if fp8 else "bf16"
        return lambda: nodes.load_parts(*_parts(folder, FP8 if fp8 else TRANSFORMER, lora), dtype)
    return lambda: usual(folder, "LoRA" in name)


def usual(folder: Path, lora: bool) -> object:
    """What ComfyUI's core nodes do: Load Diffusion Model, Load VAE, LoraLoaderModelOnly, and patching at
    first use.
    """
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    patcher = comfy.sd.load_diffusion_model(
        str(folder / TRANSFORMER), model_options={"dtype": torch.bfloat16}
    )
    vae = inprocess.pack_module("nodes.backend").build_vae(comfy.utils.load_torch_file(str(folder / VAE)))
    if lora:
        weights = comfy.utils.load_torch_file(str(folder / LORA))
        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, weights, 1.0, 0.0)
    comfy.model_management.load_models_gpu([patcher])
    return patcher, vae


def weight_bytes(loaded: object) -> tuple[int, int]:
    """Bytes of all weights of what was loaded, and of its largest tensor."""
    patcher, vae = loaded if isinstance(loaded, tuple) else (loaded.patcher, loaded.vae)
    modules = (patcher.model.diffusion_model, vae.first_stage_model)
    largest = max(t.nbytes for module in modules for t in module.state_dict().values())
    return sum(module_bytes(module) for module in modules), largest


def measure_child(name: str, folder: Path) -> None:
    """Load once in this fresh process, from the disk, and print seconds and memory as JSON."""
    load = loader(name, folder)
    for file in FILES[name]:
        forget_file(folder / file)
    start = time.perf_counter()
    with PeakMemory() as memory, torch.inference_mode():
        loaded = load()
    seconds = time.perf_counter() - start
    weights, largest = weight_bytes(loaded)
    peak = {key: memory.peak[key] - memory.before[key] for key in memory.peak}
    print(json.dumps({"seconds": seconds, "weights": weights, "largest": largest} | peak))


def child(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loading", "--child", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"loading {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rows(folder: Path, names: list[str]) -> list[list[str]]:
    found = []
    for name in names:
        m = child(name, folder)
        logger.info("%s: %s", name, m)
        gib = {key: m[key] / 2**30 for key in ("weights", "largest", "own", "all") if key in m}
        over = gib["own"] - gib["weights"] - gib["largest"] if "own" in gib else None
        on_disk = sum((folder / file).stat().st_size for file in FILES[name]) / 2**30
        found.append(
            [name, f"{on_disk:.2f}", f"{m['seconds']:.1f}", f"{gib['weights']:.2f}",
             *(f"{gib[key]:.2f}" if key in gib else "-" for key in ("own", "all")),
             "-" if over is None else f"{over:+.2f}"]
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=3.0, help="size of the synthetic bf16 transformer")
    parser.add_argument(
        "--folder", type=Path, help="where to write the files (a temporary folder by default)"
    )
    parser.add_argument("--formats", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to check this script")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--child", choices=list(FILES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    inprocess.import_comfyui()
    if arguments.child:
        measure_child(arguments.child, arguments.folder)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    size = TINY if arguments.tiny else size_of(arguments.gib)
    with tempfile.TemporaryDirectory(prefix="fe2e-loading-", dir=arguments.folder) as temporary:
        folder = Path(temporary)
        write_files(folder, size)
        if "packed, bf16" in arguments.formats:
            pack(folder)
        table = Table(
            ["format", "files, GiB", "seconds", "weights, GiB", "peak, own pages", "peak, with file pages",
             "own peak above weights + largest tensor"],
            rows(folder, arguments.formats),
        )  # fmt: skip
    text = [
        f"Synthetic files of the release's structure, width {size.hidden}, {size.doubles} + {size.singles} "
        "blocks, read from the disk (dropped from the file cache before, where the system allows it), one "
        "process each, memory above what the process had before. With file pages: pages of the mapped file "
        f"too, which the system may drop at any time. Bound: at most {SPARE_GIB:g} GiB in the last column.",
        table.markdown(),
    ]
    where = ", ".join((machine(), versions("torch", "safetensors"), comfyui_version()))
    command = " ".join(["python -m benchmarks.loading", *sys.argv[1:]])
    section("loading", "Loading, by format", "\n\n".join(text), command, arguments.write, where)


if __name__ == "__main__":
    main()
