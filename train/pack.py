"""`python -m train pack`: the released files, or a checkpoint, as one FE2E checkpoint, folded and with its LoRA merged.

Tensors are read, merged, folded, cast or quantised, and written one at a time: the memory needed is that of the LoRA
and of the largest layer, whatever the size of the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fe2e_core.assembly import AS_STORED, Assembled, Storage
from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.emptyprompt import read_conditioning
from fe2e_core.files import sha256
from fe2e_core.folding import modulation_input
from fe2e_core.lora import Merged, match_lora
from fe2e_core.provenance import provenance
from fe2e_core.quantized import Dequantized
from fe2e_core.recognition import check_base
from fe2e_core.release import LICENSE, released_as
from fe2e_core.tensorfile import TensorFile, meta

from .progress import Progress

#: Names of `--dtype`. Folded constants are float32 in every file: 4 MB in the release.
STORAGES = {
    "as-stored": Storage(format=AS_STORED),
    "bf16": Storage(torch.bfloat16),
    "fp16": Storage(torch.float16),
    "fp32": Storage(torch.float32),
    "fp8_scaled": Storage(torch.bfloat16, "float8_e4m3fn"),
    "int8": Storage(torch.bfloat16, "int8_tensorwise"),
}

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """Files to pack: transformer (released layout), vae and prompt_cache, or checkpoint alone; lora on either.

    prompt_cache: of Step1X-Edit, or for a base without connector the file that `empty-prompt` makes."""

    transformer: Path | None = None
    vae: Path | None = None
    prompt_cache: Path | None = None
    checkpoint: Path | None = None
    lora: Path | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class _Opened:
    transformer: Mapping[str, Tensor]
    vae: Mapping[str, Tensor]
    conditioning: Conditioning
    silu_vec: Tensor | None
    info: CheckpointInfo


def pack(parts: Parts, out: Path, storage: Storage, name: str | None = None, digests: bool = True,
         progress: Callable[[str], OnStep | None] = lambda label: None) -> CheckpointInfo:
    """Write one FE2E checkpoint and return what it says of itself.

    digests: note the SHA-256 of the sources, which takes a read of each. progress: from a label to the callback that
    `write_tensors` and `sha256` take, which may raise to stop. Raises ValueError for sources that are not what they
    should be, FileNotFoundError, and OSError when the disk has not enough room; `out` then is as it was.
    """
    with ExitStack() as stack:
        assembled, opened = _assemble(parts, storage, stack)
        info = replace(opened.info, name=name or out.stem)
        if digests:
            info = _with_digests(info, parts, progress)
        write_checkpoint(out, info, assembled, opened.vae, opened.conditioning, opened.silu_vec, progress(f"writing {out.name}"))
    return info


def packed_bytes(parts: Parts, storage: Storage) -> int:
    """Size of the tensors that `pack` would write. Raises what it raises for sources that are not what they should be."""
    with ExitStack() as stack:
        assembled, opened = _assemble(parts, storage, stack)
        found = [meta(tensors, name) for tensors in (assembled, opened.vae) for name in tensors]
        found += [opened.conditioning.context, opened.conditioning.pooled, opened.silu_vec]
        return sum(tensor.numel() * tensor.element_size() for tensor in found)


def _assemble(parts: Parts, storage: Storage, stack: ExitStack) -> tuple[Assembled, _Opened]:
    """The transformer to be written, its tensors made when they are asked for; and what goes with it."""
    opened = _open_checkpoint(parts.checkpoint, stack) if parts.checkpoint else _open_parts(parts, stack)
    transformer, info, silu_vec = opened.transformer, opened.info, opened.silu_vec
    if parts.lora is not None:
        lora = stack.enter_context(TensorFile(parts.lora, "LoRA"))
        trained = provenance(lora.metadata, f"LoRA '{parts.lora.name}'")
        info = info if trained is None else trained.of_checkpoint(info)
        transformer = Merged(transformer, match_lora(lora, transformer, parts.lora.name), parts.strength, silu_vec)
        merged = f"{parts.lora.name} at {parts.strength:g}"
        info = replace(info, lora=f"{info.lora} + {merged}" if info.lora else merged)
    if silu_vec is None:
        silu_vec = modulation_input(transformer, opened.conditioning, torch.float32)
    return Assembled(transformer, silu_vec, storage), replace(opened, info=info, silu_vec=silu_vec)


def _open_parts(parts: Parts, stack: ExitStack) -> _Opened:
    trained = None
    if parts.lora is not None:
        with TensorFile(parts.lora, "LoRA") as lora:
            trained = provenance(lora.metadata, f"LoRA '{parts.lora.name}'")
    vae = stack.enter_context(TensorFile(parts.vae, "VAE"))
    file = stack.enter_context(TensorFile(parts.transformer, "transformer"))
    what = f"transformer '{file.path.name}'"
    base = Dequantized(file, file.metadata, what)
    check_base(base, what, released=trained is None)
    conditioning = read_conditioning(parts.prompt_cache, base, file.metadata.get("connector_heads", ""),
                                     None if trained is None else trained.guidance)
    info = CheckpointInfo(name="", base=parts.transformer.name, vae=parts.vae.name)
    return _Opened(base, vae, conditioning, None, info)


def _open_checkpoint(path: Path, stack: ExitStack) -> _Opened:
    found = read_checkpoint(stack.enter_context(TensorFile(path, "checkpoint")))
    return _Opened(found.transformer, found.vae, found.conditioning, found.silu_vec, found.info)


def _with_digests(info: CheckpointInfo, parts: Parts, progress: Callable[[str], OnStep | None]) -> CheckpointInfo:
    """The info with digests of the sources, and the licences when all of them are released files."""
    sources = {"base": parts.transformer, "lora": parts.lora, "vae": parts.vae}
    for field, path in sources.items():
        if path is not None:
            digest = sha256(path, progress(f"reading {path.name}"))
            # A further LoRA does not take the place of the one that is in the file already.
            before = info.lora_sha256 + " + " if field == "lora" and info.lora_sha256 else ""
            info = replace(info, **{f"{field}_sha256": before + digest})
    released = [released_as(d) for d in (info.base_sha256, info.lora_sha256, info.vae_sha256)]
    return replace(info, license=LICENSE) if released == ["transformer", "lora", "vae"] else info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--transformer", type=Path, help="Step1X-Edit v1.0, as released (bf16, fp16 or fp8), or the base that --lora was trained on")
    parser.add_argument("--vae", type=Path, help="the FLUX autoencoder, ae.safetensors")
    parser.add_argument("--prompt-cache", type=Path, help="the empty-prompt cache, no_info.npz, or what `empty-prompt` made")
    parser.add_argument("--checkpoint", type=Path, help="instead of these three: a packed FE2E checkpoint, to store otherwise")
    parser.add_argument("--lora", type=Path, help="a LoRA to merge, such as LDRN.safetensors")
    parser.add_argument("--strength", type=float, default=1.0, help="strength of the LoRA (default 1)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--dtype", choices=list(STORAGES), default="bf16",
                        help="how to store the transformer; fp8_scaled and int8 are ComfyUI's own formats (default bf16)")
    parser.add_argument("--name", help="the name the checkpoint gives itself (default: that of the file)")
    parser.add_argument("--no-digests", action="store_true", help="do not note the SHA-256 of the sources: saves reading them twice")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--dry-run", action="store_true", help="check the files and say how large the result would be, write nothing")


def run(args: argparse.Namespace) -> int:
    """Pack as the options say; 0, or 1 after saying what is wrong."""
    given = [args.transformer, args.vae, args.prompt_cache]
    if bool(args.checkpoint) == any(given) or (not args.checkpoint and not all(given)):
        print("pack: give --transformer, --vae and --prompt-cache, or --checkpoint alone")
        return 1
    if args.out.exists() and not args.overwrite:
        print(f"pack: '{args.out}' exists already; choose another name, or give --overwrite")
        return 1
    parts = Parts(args.transformer, args.vae, args.prompt_cache, args.checkpoint, args.lora, args.strength)
    try:
        if args.dry_run:
            size = packed_bytes(parts, STORAGES[args.dtype])
            print(f"{args.out}: would be {size / 2**30:.2f} GiB, {args.dtype}; nothing was written")
            return 0
        info = pack(parts, args.out, STORAGES[args.dtype], args.name, not args.no_digests, Progress)
    except (ValueError, OSError) as error:
        print(f"pack: {error}")
        return 1
    print(f"{args.out}: {args.out.stat().st_size / 2**30:.2f} GiB, {args.dtype}; base {info.base or 'unknown'}, LoRA {info.lora or 'none'}")
    if info.notice:
        print(f"{info.name}: {info.notice}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train pack", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(argv))
