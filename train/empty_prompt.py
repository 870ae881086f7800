"""`python -m train empty-prompt`: the constant conditioning of a FLUX.1 base, from its own text encoders.

    python -m train empty-prompt --flux FLUX.1-dev --out models/fe2e/flux1-empty-prompt.safetensors

The prompt is always empty, so CLIP and T5 are run once, here. No tokenizer is needed: the empty prompt is begin and end
for CLIP (what follows the end does not reach its pooled vector), and end and padding for T5, whose padding FLUX attends
to like any other token. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fe2e_core.conditioning import Conditioning
from fe2e_core.tensorfile import write_tensors

if TYPE_CHECKING:
    from transformers import CLIPTextModel, T5EncoderModel

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def encode_empty_prompt(clip: CLIPTextModel, t5: T5EncoderModel, tokens: int) -> Conditioning:
    """context (1, tokens, C) of T5 and pooled (1, P) of CLIP, float32, for the prompt "".

    In CLIP's vocabulary begin and end are the last two words, whatever its configuration says of them (published ones
    differ)."""
    words = clip.config.vocab_size
    ids = torch.full((1, tokens), t5.config.pad_token_id, device=t5.device)
    ids[0, 0] = t5.config.eos_token_id
    with torch.inference_mode():
        context = t5(ids).last_hidden_state
        pooled = clip(torch.tensor([[words - 2, words - 1]], device=clip.device)).pooler_output
    return Conditioning(context.float().cpu(), pooled.float().cpu())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--flux", type=Path, help="a folder in diffusers' layout, with text_encoder and text_encoder_2")
    parser.add_argument("--clip", type=Path, help="instead: the folder of the CLIP text model (config.json, weights)")
    parser.add_argument("--t5", type=Path, help="and the folder of the T5 encoder")
    parser.add_argument("--tokens", type=int, default=512, help="of T5: 512, for FLUX.1 schnell 256 (default: %(default)s)")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="fp32",
                        help="to compute in; T5 XXL takes 19 GB of memory in fp32, half of it in bf16 (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write: context and pooled")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--dry-run", action="store_true", help="say what would be read and written, and stop")


def run(options: argparse.Namespace) -> int:
    """Returns 0. Raises ValueError and OSError for what is wrong."""
    clip, t5 = _folders(options)
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out is '{options.out}'; expected a name that ends in .safetensors")
    if not 1 <= options.tokens <= 4096:
        raise ValueError(f"--tokens is {options.tokens}; expected 512, or 256 for FLUX.1 schnell")
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"'{options.out}' exists already; choose another name, or give --overwrite")
    print(f"CLIP '{clip}', T5 '{t5}' -> '{options.out}': the empty prompt in {options.tokens} tokens")
    if options.dry_run:
        return 0
    from transformers import CLIPTextModel, T5EncoderModel

    dtype = _DTYPES[options.dtype]
    models = [
        kind.from_pretrained(folder, local_files_only=True).to(dtype).eval()
        for kind, folder in ((CLIPTextModel, clip), (T5EncoderModel, t5))
    ]
    made = encode_empty_prompt(models[0], models[1], options.tokens)
    if not bool(made.context.isfinite().all() and made.pooled.isfinite().all()):
        raise ValueError(f"'{clip}' or '{t5}' gave numbers that are not finite; use --dtype fp32, or get the files again")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    notes = {"format": "fe2e-empty-prompt", "clip": clip.name, "t5": t5.name}
    write_tensors(options.out, {"context": made.context, "pooled": made.pooled}, notes)
    print(f"context {tuple(made.context.shape)}, pooled {tuple(made.pooled.shape)}")
    return 0


def _folders(options: argparse.Namespace) -> tuple[Path, Path]:
    """The folders of CLIP and T5."""
    if bool(options.flux) == bool(options.clip or options.t5) or bool(options.clip) != bool(options.t5):
        raise ValueError("give --flux, or --clip and --t5")
    folders = (options.flux / "text_encoder", options.flux / "text_encoder_2") if options.flux else (options.clip, options.t5)
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"'{folder}' has no config.json; expected the folder of a text encoder as it is published")
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb on its own."""
    parser = argparse.ArgumentParser(prog="python -m train empty-prompt", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
