"""The pictures of the study as latents, rendered and encoded once, in files of a few dozen; resumable."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from fe2e_core.checkpoint import read_checkpoint
from fe2e_core.quantization import SCHEMES, percentile_range
from fe2e_core.quantization import encode as encode_label
from fe2e_core.tensorfile import TensorFile
from train.backend import encode, load_autoencoder
from train.data.frame import make_frame
from train.labels import label_frame
from train.scenes import HELD_OUT, Scene
from train.thesis.edits import EDITS, draw_pair
from train.thesis.settings import Pictures
from train.thesis.sharing import claimed
from train.thesis.worlds import DOMAINS, draw_scene

EXACT = "uniform, not rounded"
"""Uniform labels in float32: what is left of the uniform scheme's error without BF16."""

LABELS = (*SCHEMES, EXACT)

_PAUSE = 0.2
"""Seconds between two looks at what another process is making."""
_STREAM = 17
_PAIRS, _SCENES = 1, 2
_FIRST = {"scenes": 0, "validation": HELD_OUT + 300_000_000, "held_out": HELD_OUT + 400_000_000}
"""Scenes for fine-tuning, for choosing rates, and for the tables share no seed with each other or with the pairs."""


@dataclass(frozen=True)
class Sets:
    """Tensors by name, N pictures first. pairs, test_pairs: source, target (N,16,h,w) latents, instruction, caption
    (N,FEATURES). scenes, validation, held_out: image, normal and one entry for each of `LABELS` (N,16,h,w) latents;
    depth_mask, normal_mask (N,1,h,w) 0 or 1; depth (N,H,W) metres, facing (N,H,W,3) OpenCV normals, valid (N,H,W)
    uint8, picture (N,H,W,3) in [0,1]. float32."""

    pairs: dict[str, Tensor]
    test_pairs: dict[str, Tensor]
    scenes: dict[str, Tensor]
    validation: dict[str, Tensor]
    held_out: dict[str, Tensor]


def open_autoencoder(path: str) -> tuple[AutoencoderKL, str]:
    """The autoencoder of an FE2E checkpoint, float32, and the digest of its weights. Raises what reading raises."""
    with TensorFile(path, "autoencoder") as file:
        checkpoint = read_checkpoint(file)
        autoencoder = load_autoencoder(checkpoint)
    digest = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return autoencoder, digest.hexdigest()


def label_of(depth: Tensor, valid: Tensor, scheme: str) -> Tensor:
    """The label picture (H,W) in [-1,1] of depth (H,W) metres; what is not valid is far. One of `LABELS`."""
    rounded = None if scheme == EXACT else "nearest"
    name = "uniform" if scheme == EXACT else scheme
    span = percentile_range(depth, valid, name)
    label = encode_label(torch.where(valid, depth, 1.0), span, bf16=rounded, clip=True)
    return torch.where(valid, label, -1.0 if name == "inverse" else 1.0)


def domain_of(number: int) -> str:
    return list(DOMAINS)[number % len(DOMAINS)]


def _pair(autoencoder: AutoencoderKL, number: int, size: Pictures) -> dict[str, Tensor]:
    # 5 edits and 2 domains have no common divisor: every combination comes up
    pair = draw_pair((_STREAM, _PAIRS, number), EDITS[number % len(EDITS)], domain_of(number), size.height, size.width)
    pictures = torch.stack([pair.source, pair.target]).permute(0, 3, 1, 2) * 2 - 1
    source, target = encode(autoencoder, pictures)
    return {"source": source, "target": target, "instruction": pair.instruction, "caption": pair.caption}


def labelled_scene(number: int, size: Pictures) -> Scene:
    """A scene of fine-tuning, validation or the tables."""
    *_, scene = draw_scene((_STREAM, _SCENES, number), domain_of(number), size.height, size.width)
    return scene


def held_out_scene(index: int, size: Pictures) -> Scene:
    """A scene of the tables, by its place in `Sets.held_out`."""
    return labelled_scene(_FIRST["held_out"] + index, size)


def _scene(autoencoder: AutoencoderKL, number: int, size: Pictures) -> dict[str, Tensor]:
    scene = labelled_scene(number, size)
    frame = make_frame(scene.image, scene.depth, scene.normal, scene.mask, scene.mask, scene.intrinsics, str(number))
    labelled = label_frame(frame, "log")
    labels = [label_of(scene.depth, scene.mask, scheme).expand(3, -1, -1) for scheme in LABELS]
    latents = encode(autoencoder, torch.stack([labelled.image, labelled.normal, *labels]))
    return {
        **dict(zip(("image", "normal", *LABELS), latents, strict=True)),
        "depth_mask": labelled.depth_mask,
        "normal_mask": labelled.normal_mask,
        "depth": scene.depth,
        "facing": scene.normal,
        "valid": scene.mask.to(torch.uint8),
        "picture": scene.image,
    }


def _cached(
    folder: Path,
    numbers: range,
    chunk: int,
    make: Callable[[int], dict[str, Tensor]],
    may_go_on: Callable[[], bool],
    on_step: Callable[[str], None],
) -> dict[str, Tensor] | None:
    """The pictures of these numbers, made where they are missing, together with other processes; None when `may_go_on` said
    no on the way."""
    files = {folder / f"{begin:06d}-{min(begin + chunk, len(numbers)):06d}.safetensors": begin
             for begin in range(0, len(numbers), chunk)}  # fmt: skip
    while missing := [file for file in files if not file.is_file()]:
        for file in missing:
            if not may_go_on():
                return None
            with claimed(folder / "locks" / file.stem) as mine:
                if not mine or file.is_file():
                    continue
                begin = files[file]
                with torch.inference_mode():
                    made = [make(number) for number in numbers[begin : begin + chunk]]
                    tensors = {key: torch.stack([m[key] for m in made]).contiguous() for key in made[0]}
                temporary = file.with_name(f".{file.name}.part")
                save_file(tensors, temporary)
                os.replace(temporary, file)
                on_step(f"{folder.name}: {min(begin + chunk, len(numbers))} of {len(numbers)}")
        time.sleep(_PAUSE)
    parts = [load_file(file) for file in files]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def open_sets(
    folder: Path,
    config: Pictures,
    autoencoder: AutoencoderKL,
    may_go_on: Callable[[], bool],
    on_step: Callable[[str], None],
) -> Sets | None:
    """All pictures, from `folder` as far as they are there. None when time ran out; nothing is lost then."""
    domains = len(DOMAINS)
    wanted = {
        "held_out": (range(_FIRST["held_out"], _FIRST["held_out"] + domains * config.held_out), _scene),
        "validation": (range(_FIRST["validation"], _FIRST["validation"] + domains * config.validation), _scene),
        "scenes": (range(_FIRST["scenes"], _FIRST["scenes"] + config.scenes), _scene),
        "test_pairs": (range(HELD_OUT, HELD_OUT + config.edits), _pair),
        "pairs": (range(config.pairs), _pair),
    }
    sets = {}
    for name, (numbers, make) in wanted.items():
        found = _cached(
            folder / name, numbers, config.chunk, lambda n, make=make: make(autoencoder, n, config), may_go_on, on_step
        )
        if found is None:
            return None
        sets[name] = found
    return Sets(**sets)
