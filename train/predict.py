"""`python -m train predict CHECKPOINT INPUT... --output FOLDER`: depth and normals of many pictures, without ComfyUI.

Run it again to go on where it was stopped. Several processes or machines: `accelerate launch -m train predict ...`.
"""

from __future__ import annotations

import argparse
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from fe2e_core.assumptions import DEFAULT_FOV
from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.depth_decoding import DEFAULT_RATIO
from fe2e_core.estimation import MODES
from fe2e_core.exr import EXR_PRESETS
from fe2e_core.tensorfile import TensorFile
from train.prediction.inputs import PICTURE, SHARD, VIDEO, Work, find_work, read_list
from train.prediction.outputs import FORMATS, OutputOptions, Store

log = logging.getLogger(__name__)

INTERRUPTED = 130
_PATIENCE = timedelta(days=30)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("checkpoint", type=Path, help="an FE2E checkpoint, such as models/fe2e-nano.safetensors")
    parser.add_argument("inputs", nargs="*", metavar="input", help="pictures, folders, videos, WebDataset shards (.tar)")
    parser.add_argument("--list", type=Path, help="a text file with more inputs, one path a line")
    parser.add_argument("--root", type=Path, help="files given themselves are named by their path below this folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results; new, or of the same command")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=["npz"],
                        help="npz, exr, png16: raw; pictures, clay: to look at (default: npz)")  # fmt: skip
    parser.add_argument("--size", choices=MODES, default="trained",
                        help="what the network works at; results have each picture's own size (default: trained)")  # fmt: skip
    parser.add_argument("--longest-side", type=int, default=1024, help="pixels, for longest_side (default: %(default)s)")
    parser.add_argument("--detail", type=float, default=4.0, help="for tiled: how many times larger (default: %(default)s)")
    parser.add_argument("--overlap", type=float, default=0.25, help="for tiled: share of a tile (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="of videos, every so-manieth frame (default: %(default)s)")
    parser.add_argument("--extension", default="", help="of the picture in a shard's samples (default: the first picture)")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp8"), default="auto",
                        help="of the transformer; auto: bf16 on a GPU, fp32 on a CPU (default: auto)")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--with-image", action="store_true", help="store the picture in NPZ files too")
    parser.add_argument("--no-compress", action="store_true", help="NPZ files twice as large, written faster")
    parser.add_argument("--preset", choices=list(EXR_PRESETS), default=next(iter(EXR_PRESETS)),
                        help="axes and channel names of EXR files (default: %(default)s)")  # fmt: skip
    parser.add_argument("--fov", type=float, default=DEFAULT_FOV,
                        help="horizontal degrees that EXR files assume (default: %(default)s)")  # fmt: skip
    parser.add_argument("--far-near-ratio", type=float, default=DEFAULT_RATIO,
                        help="far plane / near plane that EXR files assume (default: %(default)s)")  # fmt: skip
    parser.add_argument("--far-white", action="store_true", help="depth pictures: far is white")
    parser.add_argument("--threads", type=int, default=0,
                        help="CPU threads of each process; the last bits of CPU results depend on it (default: as the "
                        "run began, at first as the environment says)")  # fmt: skip
    parser.add_argument("--writers", type=int, default=2, help="threads that write, for each process (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be read and where it would go, and stop")


def run(options: argparse.Namespace) -> int:
    """The verb: 0, 1 when every input was bad, 130 when it was stopped. Raises ValueError and OSError for what is
    wrong with the command, the checkpoint or the output folder."""
    outputs = OutputOptions(
        formats=tuple(name for name in FORMATS if name in options.formats), image=options.with_image,
        compress=not options.no_compress, preset=options.preset, fov=options.fov,
        far_near_ratio=options.far_near_ratio, near_white=not options.far_white,
    )  # fmt: skip
    inputs = [*options.inputs, *(read_list(options.list) if options.list else ())]
    work = find_work(inputs, options.output, options.root)
    if options.dry_run:
        return _announce(options, outputs, work)
    # once for every picture is too often
    logging.getLogger("fe2e_core").setLevel(logging.WARNING)
    with _terminable():
        try:
            return _predict(options, outputs, work)
        except KeyboardInterrupt:
            log.warning("stopped; the same command goes on from here")
            return INTERRUPTED


def _announce(options: argparse.Namespace, outputs: OutputOptions, work: list[Work]) -> int:
    """Check the checkpoint's header, count the inputs, write nothing."""
    with TensorFile(options.checkpoint, "checkpoint") as file:
        info = read_checkpoint(file).info
    counts = Counter(item.kind for item in work)
    kinds = ", ".join(f"{counts[kind]} {kind}(s)" for kind in (PICTURE, VIDEO, SHARD) if counts[kind])
    print(f"{info.name}: {kinds} into '{options.output}' as {', '.join(outputs.formats)}; nothing was written")
    if info.notice:
        print(f"{info.name}: {info.notice}")
    missing = [str(item.path) for item in work if not item.path.is_file()]
    if missing:
        print(f"not there: {', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}")
    return 0


def _predict(options: argparse.Namespace, outputs: OutputOptions, work: list[Work]) -> int:
    # diffusers and accelerate, which --help does not need
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, gather_object

    from train.prediction.run import Predicting, claim, read_settings
    from train.prediction.schedule import ReadOptions, Share
    from train.predictor import GeometryPredictor, SizeChoice

    size = SizeChoice(options.size, options.longest_side, options.detail, options.overlap)
    reading = ReadOptions(options.every, options.extension)
    # processes may finish hours apart
    accelerator = Accelerator(cpu=options.cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
    main, share = accelerator.is_main_process, Share(accelerator.process_index, accelerator.num_processes)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bf16" if accelerator.device.type == "cuda" else "fp32"
    predictor = GeometryPredictor(options.checkpoint, dtype, accelerator.device, digest=main)
    if main and predictor.info.notice:
        log.info("%s: %s", predictor.info.name, predictor.info.notice)
    store = Store(options.output, outputs)
    if main:
        # sums over several threads round differently: a run goes on with as many as it began with
        threads = options.threads or read_settings(options.output).get("threads") or torch.get_num_threads()
        settings = {
            "checkpoint": predictor.info.name,
            "sha256": predictor.digest,
            "dtype": dtype,
            "threads": threads,
            "size": asdict(size),
            "outputs": asdict(outputs) | {"formats": list(outputs.formats)},
            "reading": asdict(reading),
        }
        claim(options.output, settings)
        store.begin()
    accelerator.wait_for_everyone()
    torch.set_num_threads(int(read_settings(options.output)["threads"]))
    counts = Predicting(predictor, store, size, reading, share, options.writers, show=main).run(work)
    everyone = gather_object([asdict(counts)])
    status = 0
    if main:
        store.end()
        predicted, finished, bad = (sum(each[key] for each in everyone) for key in ("predicted", "finished", "bad"))
        listed = f", {bad} bad ones listed in {options.output / 'bad.tsv'}" if bad else ""
        print(f"{options.output}: {predicted} predicted, {finished} there already{listed}")
        status = int(bool(bad) and not predicted + finished)
    accelerator.end_training()
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill, stops as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
