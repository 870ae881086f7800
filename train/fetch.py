"""`python -m train fetch`: the released files, into the folders where ComfyUI looks for them.

Nothing is ever fetched without this command. Sizes and digests are checked, free space before anything comes, the
licences are shown. Cut downloads go on where they were.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from fe2e_core.promptcache import read_prompt_cache
from fe2e_core.release import FILES, ReleasedFile

from . import pack
from .download import Expected, download, matches
from .progress import Progress

#: Left free on the disk.
_SPARE_BYTES = 2**30
#: A packed bf16 file of the release: 8.64 of 12.43 billion parameters, the autoencoder, the constants.
_PACKED_BYTES = {"bf16": 17_700_000_000, "fp16": 17_700_000_000, "fp8_scaled": 9_200_000_000, "int8": 9_200_000_000}


def address(file: ReleasedFile, base_url: str | None) -> str:
    """Where a file is fetched: a mirror with the same paths, or huggingface_hub's endpoint (HF_ENDPOINT), or the host."""
    if base_url:
        return f"{base_url.rstrip('/')}/{file.address}"
    if not file.github:
        try:
            from huggingface_hub import hf_hub_url
        except ImportError:
            host = os.environ.get("HF_ENDPOINT", file.host).rstrip("/")
            return f"{host}/{file.address}"
        return hf_hub_url(file.repository, file.path, revision=file.revision)
    return f"{file.host}/{file.address}"


def expected(file: ReleasedFile) -> Expected:
    return Expected(file.bytes, file.sha256, file.git_blob)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--models-dir", type=Path, required=True, help="ComfyUI's folder 'models'")
    parser.add_argument("--what", nargs="+", choices=list(FILES), default=list(FILES), metavar="PART",
                        help=f"parts to fetch, of {', '.join(FILES)} (default: all)")
    parser.add_argument("--fold", nargs="?", const="bf16", choices=list(_PACKED_BYTES), metavar="DTYPE",
                        help="then write one packed file, fe2e/fe2e-DTYPE.safetensors: bf16 (default), fp16, fp8_scaled or int8")
    parser.add_argument("--base-url", help="a mirror that has the same paths below this address")
    parser.add_argument("--yes", action="store_true", help="accept the licences without being asked")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched, and stop")


def run(args: argparse.Namespace) -> int:
    """Fetch as the options say; 0, or 1 after saying what is wrong."""
    if not args.models_dir.is_dir():
        print(f"fetch: there is no folder '{args.models_dir}'; give ComfyUI's folder 'models'")
        return 1
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        print(f"fetch: {error}")
        return 1


def _run(args: argparse.Namespace) -> int:
    wanted = [FILES[part] for part in dict.fromkeys(args.what)]
    packed = args.models_dir / "fe2e" / f"fe2e-{args.fold}.safetensors" if args.fold else None
    if packed and set(args.what) != set(FILES):
        raise ValueError("--fold needs all four parts; leave --what out (files that are there already are not fetched again)")
    if packed and packed.exists():
        raise ValueError(f"'{packed}' exists already; move it away to make it again")
    missing: list[ReleasedFile] = []
    for file in wanted:
        path = args.models_dir / file.folder / file.name
        print(f"{file.part}: {address(file, args.base_url)}\n    -> {path}\n    {_size(file)}; licence {file.license}, {file.license_url}")
        if not path.exists():
            missing.append(file)
        elif args.dry_run:
            print("    there already (not verified in a dry run)")
        elif matches(path, expected(file), Progress(f"    verifying {file.name}")):
            print("    there already, verified")
        else:
            raise ValueError(f"'{path}' exists and is not the released file; move it away, or rename it, and run the command again")
    needed = sum(_left(file, args.models_dir) for file in missing) + (_PACKED_BYTES[args.fold] if packed else 0)
    free = shutil.disk_usage(args.models_dir).free
    print(f"to fetch{' and write' if packed else ''}: {needed / 2**30:.2f} GiB; free: {free / 2**30:.2f} GiB")
    if args.dry_run:
        return 0
    if needed + _SPARE_BYTES * bool(needed) > free:
        raise OSError(f"'{args.models_dir}' has {free / 2**30:.2f} GiB free, {(needed + _SPARE_BYTES) / 2**30:.2f} GiB are needed; "
                      "free some room, or fetch less with --what")
    if missing and not args.yes and not _accepted():
        print("fetch: the licences were not accepted; give --yes, or answer 'yes'")
        return 1
    for file in missing:
        _fetch(file, args)
    if packed:
        _fold(args.models_dir, packed, args.fold)
    return 0


def _fetch(file: ReleasedFile, args: argparse.Namespace) -> None:
    path = args.models_dir / file.folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)

    def check(part: Path) -> None:
        if file.part == "prompt-cache":
            read_prompt_cache(part)

    digest = download(address(file, args.base_url), path, expected(file), check,
                      Progress(f"    fetching {file.name}"), Progress(f"    verifying {file.name}"))
    verified = "verified" if file.sha256 else "no SHA-256 is published: its git id was verified, and that it can be read"
    print(f"    {path}: SHA-256 {digest} ({verified})")


def _fold(models: Path, packed: Path, dtype: str) -> None:
    """The fetched parts as one file."""
    path = {part: models / file.folder / file.name for part, file in FILES.items()}
    parts = pack.Parts(path["transformer"], path["vae"], path["prompt-cache"], None, path["lora"])
    info = pack.pack(parts, packed, pack.STORAGES[dtype], digests=True, progress=Progress)
    print(f"    {packed}: {packed.stat().st_size / 2**30:.2f} GiB, {info.base} with {info.lora}")


def _size(file: ReleasedFile) -> str:
    return f"{file.bytes / 2**30:.2f} GiB" if file.bytes else "size not published, some MB"


def _left(file: ReleasedFile, models: Path) -> int:
    """Bytes that still have to come."""
    part = models / file.folder / f"{file.name}.part"
    return max(0, (file.bytes or 2**24) - (part.stat().st_size if part.exists() else 0))


def _accepted() -> bool:
    """Whether the person at the keyboard accepts the licences shown above; nobody at one means no."""
    try:
        return input("Do you accept these licences? [yes/no] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train fetch", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(argv))
