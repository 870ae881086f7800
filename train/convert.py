"""`python -m train convert`: a LoRA of kohya's format into diffusers' or peft's, or back; biases and
constants too.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fe2e_core.files import sha256
from fe2e_core.folding import is_modulation
from fe2e_core.keymaps import linear_modules
from fe2e_core.lora import LoraModule, match_lora
from fe2e_core.lora_keys import ADAPTER_METADATA
from fe2e_core.tensorfile import TensorFile, write_tensors
from train.lora_export import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    LoraNotes,
    rank_one_loss,
    tensors_digest,
    to_diffusers,
    to_kohya,
    with_rank_one,
    write_peft,
)

FORMATS = ("kohya", "diffusers", "peft")
_DTYPES = {"as-stored": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_BLOCKS = (
    re.compile(r"double_blocks[._](\d+)|(?<!single_)transformer_blocks[._](\d+)"),
    re.compile(r"single_blocks[._](\d+)|single_transformer_blocks[._](\d+)"),
)
#: Metadata of these kinds stays true in another format.
_KEPT = ("ss_", "modelspec.", "fe2e.")


def read_lora(path: Path) -> tuple[dict[str, LoraModule], dict[str, str]]:
    """Any LoRA file, or peft's folder -> modules by FLUX name, and the file's metadata. No base is needed.

    Raises ValueError when the keys are none of a FLUX transformer's, FileNotFoundError.
    """
    metadata: dict[str, str] = {}
    file_path = path
    if path.is_dir():
        file_path, config = path / PEFT_WEIGHTS, path / PEFT_CONFIG
        if not config.is_file():
            raise FileNotFoundError(
                f"LoRA: the folder '{path}' has no {PEFT_CONFIG}; expected what peft saves"
            )
        metadata[ADAPTER_METADATA] = config.read_text(encoding="utf-8")
    with TensorFile(file_path, "LoRA") as file:
        metadata = file.metadata | metadata
        names = [f"{module}.weight" for module in linear_modules(*_counts(file))]
        return match_lora(file, names, path.name, metadata), metadata


def _counts(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many double and single blocks the keys speak of."""
    counts = []
    for pattern in _BLOCKS:
        numbers = [
            int(next(group for group in match.groups() if group))
            for key in tensors
            if (match := pattern.search(key))
        ]
        counts.append(1 + max(numbers, default=-1))
    return counts[0], counts[1]


def _rank_one(
    modules: dict[str, LoraModule], checkpoint: Path, base: Path | None
) -> tuple[dict[str, LoraModule], list[str]]:
    """Changes of constants as rank-one LoRAs, and what that loses, in words."""
    with TensorFile(checkpoint, "checkpoint") as file:
        if "conditioning.silu_vec" not in file:
            raise ValueError(
                f"checkpoint: '{checkpoint.name}' does not hold silu(vec); expected a packed FE2E checkpoint"
            )
        silu_vec = file["conditioning.silu_vec"]
    changed = [m for m, lora in modules.items() if lora.diff_b is not None and is_modulation(m)]
    words = [f"{len(changed)} changes of constants written as rank-one LoRAs"]
    if base is None:
        words.append(
            "what a bf16 merge loses of them was not measured: give --base, the unfolded transformer"
        )
    elif changed:
        with TensorFile(base, "transformer") as file:
            losses = {m: rank_one_loss(file[f"{m}.weight"], modules[m].diff_b, silu_vec) for m in changed}
        worst = max(losses, key=losses.__getitem__)
        mean = sum(losses.values()) / len(losses)
        words.append(f"merged into '{base.name}' they lose {mean:.1%} of the change on average, {losses[worst]:.1%} in '{worst}'; "
                     "kohya's .diff_b loses nothing")  # fmt: skip
    return with_rank_one(modules, silu_vec), words


def convert(
    source: Path,
    target: Path,
    form: str,
    dtype: torch.dtype | None = None,
    checkpoint: Path | None = None,
    base: Path | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Write `source` as `form` to `target` (a file, a folder for peft) and say in words what was done.

    checkpoint: turn changes of constants into rank-one LoRAs by its silu(vec); base: measure the loss of
    that. Raises ValueError for an unknown form or unfit files, FileExistsError when the target exists."""
    if form not in FORMATS:
        raise ValueError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
    if target.exists():
        raise FileExistsError(f"'{target}' exists and is not overwritten; choose another name")
    modules, metadata = read_lora(source)
    words = [f"'{source.name}': {len(modules)} layers"]
    if checkpoint is not None:
        modules, more = _rank_one(modules, checkpoint, base)
        words += more
    elif any(lora.diff_b is not None for lora in modules.values()):
        where = ".diff_b, exactly" if form == "kohya" else "lora_B.bias"
        words.append(f"changes of biases and constants are written as {where}")
    if dry_run:
        return [*words, "nothing was written (--dry-run)"]
    digest = sha256(source / PEFT_WEIGHTS if source.is_dir() else source)
    if form == "peft":
        write_peft(target, modules, LoraNotes(title=metadata.get("modelspec.title", source.stem)), dtype)
    else:
        tensors = to_kohya(modules, dtype) if form == "kohya" else to_diffusers(modules, dtype)
        own = LoraNotes(title=source.stem).metadata(modules, tensors_digest(tensors))
        kept = {key: value for key, value in metadata.items() if key.startswith(_KEPT)}
        fresh = {
            key: own[key]
            for key in ("ss_network_dim", "ss_network_alpha", "modelspec.hash_sha256")
            if key in own
        }
        write_tensors(target, tensors, own | kept | fresh | {"fe2e.converted_from_sha256": digest})
    return [*words, f"written as {form}: '{target}'"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("source", type=Path, help="LoRA file of any format, or peft's folder")
    parser.add_argument("target", type=Path, help="file to write; a folder for peft")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format to write")
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="as-stored", help="of the factors (default: %(default)s)"
    )
    parser.add_argument(
        "--rank-one",
        type=Path,
        metavar="CHECKPOINT",
        help="write changes of constants as rank-one LoRAs; an FE2E checkpoint that holds silu(vec)",
    )
    parser.add_argument(
        "--base", type=Path, help="unfolded transformer, to measure what the rank-one LoRAs lose"
    )
    parser.add_argument("--dry-run", action="store_true", help="read and check, write nothing")


def run(options: argparse.Namespace) -> int:
    """The verb. Raises what `convert` raises."""
    dtype = _DTYPES[options.dtype]
    words = convert(
        options.source, options.target, options.to, dtype, options.rank_one, options.base, options.dry_run
    )
    print("\n".join(words))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb on its own."""
    parser = argparse.ArgumentParser(prog="python -m train convert", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
