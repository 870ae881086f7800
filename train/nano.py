"""`python -m train nano`: the embedded demonstration model, from nothing to one checkpoint file.

Ray-cast scenes -> autoencoder -> latents -> transformer -> FE2E checkpoint and its metrics. Every stage resumes from
the work folder, so a stopped run loses minutes at most.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fe2e_core.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from fe2e_core.conditioning import Conditioning
from fe2e_core.folding import modulation_input
from fe2e_core.keymaps import diffusers_to_flux, vae_from_diffusers
from fe2e_core.tensorfile import TensorFile
from train.backend import load_autoencoder, load_transformer
from train.config import NanoConfig
from train.decoder import DecoderTask, refine_decoder
from train.latents import build_latents
from train.pixels import PixelTask
from train.pool import build_pool
from train.transformer import ConditionedTransformer, TransformerTask, train_transformer
from train.vae import train_autoencoder

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

NOTICE = (
    "fe2e-nano is a small demonstration model trained on procedural scenes only; expect rough shapes on photographs. "
    "For the real one load Step1X-Edit with the FE2E LoRA (see the README)."
)


def train_nano(
    config: NanoConfig, out: Path, on_step: Callable[[str], None] = log.info
) -> None:
    """Run every stage and write `out`. At each save of the transformer a usable `out` is written as well."""
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.replicas)
    began = time.time()
    pool_root = work / "pool"
    build_pool(pool_root, config.pool, on_step)
    start = open_start(config)
    if start is not None:
        autoencoder = start.autoencoder
    else:
        autoencoder = train_autoencoder(
            work, pool_root, config.pool, config.autoencoder_shape, config.autoencoder, config.replicas, on_step
        )
    small, fine = work / "latents-small", work / "latents-fine"
    build_latents(pool_root, small, config.pool, config.small, autoencoder, on_step)
    if config.transformer.fine_steps:
        build_latents(pool_root, fine, config.pool, config.fine, autoencoder, on_step)
    task = TransformerTask(
        str(pool_root), str(small), str(fine), config.pool, config.small, config.fine, config.transformer
    )

    def save(model: ConditionedTransformer) -> None:
        write_nano(out, config, model, autoencoder)

    begin = None if start is None else start.model
    model = train_transformer(work, task, config.transformer_shape, config.replicas, on_step, save, begin)
    stages = [model] if begin is None else [begin, model]
    has_fine = config.transformer.fine_steps > 0
    encoded, latent_config = (fine, config.fine) if has_fine else (small, config.small)
    if config.pixels.steps:
        behind = PixelTask(str(pool_root), str(encoded), config.pool, latent_config, config.pixels, autoencoder)
        shape, replicas = config.transformer_shape, config.replicas
        model = train_transformer(work, behind, shape, replicas, on_step, save, model, "pixels")
        stages.append(model)
    if config.blend:
        model = blended(stages)
    if config.decoder.steps:
        last = DecoderTask(str(pool_root), str(encoded), config.pool, latent_config, config.decoder, model)
        autoencoder = refine_decoder(work, last, autoencoder, config.replicas, on_step)
    write_nano(out, config, model, autoencoder)
    on_step(f"wrote {out} after {(time.time() - began) / 60:.0f} minutes")


def blended(models: Sequence[Model]) -> Model:
    """A new model whose weights are the mean of theirs. Stages of one training err in different ways, and their mean
    errs less than the last (model soups, arXiv 2203.05482)."""
    result = copy.deepcopy(models[-1])
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, value in result.state_dict().items():
            value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    return result


@dataclass(frozen=True)
class Start:
    """A finished small model, to go on from."""

    autoencoder: AutoencoderKL
    model: ConditionedTransformer


def open_start(config: NanoConfig) -> Start | None:
    """The checkpoint `config.start` as it can be trained further, or None when there is none to go on from.

    Raises what reading a checkpoint raises, and ValueError when its shapes are not those of the configuration.
    """
    if not config.start:
        return None
    with TensorFile(config.start, "start") as file:
        checkpoint = read_checkpoint(file)
        autoencoder = load_autoencoder(checkpoint)
        weights = load_transformer(checkpoint).state_dict()
        conditioning = checkpoint.conditioning
    model = ConditionedTransformer(config.transformer_shape)
    expected = {k: tuple(v.shape) for k, v in model.transformer.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    if found != expected:
        key = sorted(expected.items() ^ found.items())[0][0]
        raise ValueError(
            f"start {config.start}: {key} is {found.get(key)}, [transformer_shape] gives {expected.get(key)}; "
            "set the table to the shape of the checkpoint"
        )
    model.transformer.load_state_dict(weights)
    with torch.no_grad():
        model.context.copy_(conditioning.context)
        model.pooled.copy_(conditioning.pooled)
    return Start(autoencoder, model)


def trained_size(config: NanoConfig) -> tuple[int, int]:
    """The picture size (height, width) in pixels that the last steps were trained at."""
    from train.latents import scaled_size

    scale = config.fine.scale if config.transformer.fine_steps else config.small.scale
    return scaled_size(config.pool.sizes[0], scale)


def write_nano(out: Path, config: NanoConfig, model: ConditionedTransformer, autoencoder: AutoencoderKL) -> None:
    """One FE2E checkpoint: folded transformer in BF16 (constants and norms in float32), autoencoder in BF16."""
    conditioning = Conditioning(model.context.detach().float(), model.pooled.detach().float())
    transformer = diffusers_to_flux({k: v.detach() for k, v in model.transformer.state_dict().items()})
    stored = {k: _stored(k, v) for k, v in transformer.items()}
    silu_vec = modulation_input(stored, conditioning, torch.float32)
    height, width = trained_size(config)
    info = CheckpointInfo(
        name=config.name,
        height=height,
        width=width,
        quantization="log",
        base="trained from scratch on procedural scenes",
        license="Apache-2.0",
        notice=NOTICE,
    )
    autoencoder_weights = {k: v.detach() for k, v in autoencoder.state_dict().items()}
    write_checkpoint(
        out,
        info,
        stored,
        {k: v.to(torch.bfloat16).contiguous() for k, v in vae_from_diffusers(autoencoder_weights).items()},
        conditioning,
        silu_vec,
    )


def _stored(name: str, value: Tensor) -> Tensor:
    """Matrices lose nothing that matters in BF16; vectors are few and keep float32."""
    return (value.to(torch.bfloat16) if value.dim() > 1 else value.float()).contiguous()


def plan(config: NanoConfig, out: Path) -> list[str]:
    """What a run of this configuration will do, in lines. Raises ValueError for what cannot work."""
    shape = config.transformer_shape
    if shape.width % 128 or shape.width <= 0:
        raise ValueError(f"[transformer_shape] width is {shape.width}; expected a multiple of 128 (one attention head)")
    if shape.double_blocks < 1:
        raise ValueError(f"[transformer_shape] double_blocks is {shape.double_blocks}; FLUX needs at least one")
    levels = [config.autoencoder_shape.width * m for m in config.autoencoder_shape.multipliers]
    if len(levels) != 4 or any(level % 32 for level in levels):
        raise ValueError(f"[autoencoder_shape] gives channels {levels}; expected four multiples of 32")
    for size in config.pool.sizes:
        if len(size) != 2 or any(side % 16 or side < 16 for side in size):
            raise ValueError(f"[pool] size {list(size)}; expected [height, width], multiples of 16")
    if config.start and not Path(config.start).is_file():
        raise FileNotFoundError(f"start {config.start}: there is no such file; give a small FE2E checkpoint")
    height, width = trained_size(config)
    return [
        f"render {config.pool.scenes} scenes (seeds from {config.pool.first_seed}) into {config.work}/pool",
        f"take the autoencoder and the first weights of {config.start}"
        if config.start
        else f"train an autoencoder with channels {levels} for {config.autoencoder.steps} steps",
        f"encode {config.small.share:.0%} of the scenes at scale {config.small.scale:g}, "
        f"{config.fine.share:.0%} at {config.fine.scale:g}",
        f"train a transformer of width {shape.width}, {shape.double_blocks} + {shape.single_blocks} blocks, for "
        f"{config.transformer.steps} + {config.transformer.fine_steps} steps",
        f"train it behind the decoder for {config.pixels.steps} steps",
        *(["take the mean of the start and of both stages"] if config.blend else []),
        f"train the decoder on what the transformer predicts for {config.decoder.steps} steps",
        f"write {out}, trained size {width}x{height}, and score it on {config.held_out} held-out scenes",
    ]
