"""The network of the golden files, drawn again from its seed.

`tests/data/{base,lora}.safetensors` hold what the reference implementation computes on a tiny network whose
weights are a function of their names. This file knows the names and shapes (for any width and depth, so the
released size can be checked against `tests/data/step1x_keys.json`) and the drawing rule; it holds no numbers
of its own and imports neither the core nor ComfyUI.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

DATA = Path(__file__).resolve().parent.parent / "data"

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class GoldenConfig:
    """Sizes of one network of this family. The defaults are those of the golden files."""

    hidden: int = 256  # DiT width, heads of 128
    depth: int = 2  # double blocks
    single: int = 3  # single blocks
    llm: int = 64  # width of the prompt embeddings
    ctx: int = 96  # width of the text tokens given to the DiT
    ctx_heads: int = 3
    ctx_depth: int = 2
    tokens: int = 12
    valid: int = 5  # tokens of the prompt cache that are real, the rest is padding
    ch: int = 32  # VAE base width
    seed: int = 11
    lora: bool = False
    rank: int = 4
    alpha: float = 2.0


#: The released Step1X-Edit transformer (with connector) and its LoRA.
RELEASED = GoldenConfig(
    hidden=3072, depth=19, single=38, llm=3584, ctx=4096, ctx_heads=32, ctx_depth=2,
    tokens=640, valid=0, ch=128, lora=True, rank=64, alpha=32.0,
)


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """One tensor (bfloat16, as stored) by the rule of the golden files: a function of name, shape and seed.
    """
    rs = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    n = rs.standard_normal(shape).astype(np.float32)
    if name.endswith("scale_factor"):
        value = np.full(shape, -0.91, dtype=np.float32)
    elif name.endswith(".bias"):
        value = 0.02 * n
    elif len(shape) == 1:
        value = 1 + 0.1 * n
    else:
        value = n / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).to(torch.bfloat16)


def _linear(shapes: Shapes, name: str, n_in: int, n_out: int) -> None:
    shapes[f"{name}.weight"] = (n_out, n_in)
    shapes[f"{name}.bias"] = (n_out,)


def connector_shapes(config: GoldenConfig) -> Shapes:
    """`connector.*`: the token refiner that turns the prompt cache into context and pooled vector."""
    shapes: Shapes = {}
    ctx, llm = config.ctx, config.llm
    _linear(shapes, "connector.S.input_embedder", llm, ctx)
    _linear(shapes, "connector.S.t_embedder.mlp.0", 256, ctx)
    _linear(shapes, "connector.S.t_embedder.mlp.2", ctx, ctx)
    _linear(shapes, "connector.S.c_embedder.linear_1", llm, ctx)
    _linear(shapes, "connector.S.c_embedder.linear_2", ctx, ctx)
    for n in range(config.ctx_depth):
        block = f"connector.S.individual_token_refiner.blocks.{n}"
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"] = (ctx,)
            shapes[f"{block}.{norm}.bias"] = (ctx,)
        _linear(shapes, f"{block}.self_attn_qkv", ctx, 3 * ctx)
        _linear(shapes, f"{block}.self_attn_proj", ctx, ctx)
        _linear(shapes, f"{block}.mlp.fc1", ctx, 4 * ctx)
        _linear(shapes, f"{block}.mlp.fc2", 4 * ctx, ctx)
        _linear(shapes, f"{block}.adaLN_modulation.1", ctx, 2 * ctx)
    _linear(shapes, "connector.global_proj_out", llm, 768)
    shapes["connector.scale_factor"] = (1,)
    return shapes


def block_shapes(config: GoldenConfig) -> Shapes:
    """The double and single blocks: every Linear in here is a LoRA target."""
    shapes: Shapes = {}
    hidden = config.hidden
    for n in range(config.depth):
        for stream in ("img", "txt"):
            block = f"double_blocks.{n}.{stream}"
            _linear(shapes, f"{block}_mod.lin", hidden, 6 * hidden)
            _linear(shapes, f"{block}_attn.qkv", hidden, 3 * hidden)
            _linear(shapes, f"{block}_attn.proj", hidden, hidden)
            for norm in ("query_norm", "key_norm"):
                shapes[f"{block}_attn.norm.{norm}.scale"] = (128,)
            _linear(shapes, f"{block}_mlp.0", hidden, 4 * hidden)
            _linear(shapes, f"{block}_mlp.2", 4 * hidden, hidden)
    for n in range(config.single):
        block = f"single_blocks.{n}"
        _linear(shapes, f"{block}.linear1", hidden, 7 * hidden)
        _linear(shapes, f"{block}.linear2", 5 * hidden, hidden)
        _linear(shapes, f"{block}.modulation.lin", hidden, 3 * hidden)
        for norm in ("query_norm", "key_norm"):
            shapes[f"{block}.norm.{norm}.scale"] = (128,)
    return shapes


def dit_shapes(config: GoldenConfig, connector: bool = True) -> Shapes:
    """The transformer under its public key names, with the connector unless told otherwise."""
    shapes: Shapes = {}
    hidden = config.hidden
    _linear(shapes, "img_in", 64, hidden)
    _linear(shapes, "txt_in", config.ctx, hidden)
    for name, width in (("time_in", 256), ("vector_in", 768)):
        _linear(shapes, f"{name}.in_layer", width, hidden)
        _linear(shapes, f"{name}.out_layer", hidden, hidden)
    shapes.update(block_shapes(config))
    _linear(shapes, "final_layer.linear", hidden, 64)
    _linear(shapes, "final_layer.adaLN_modulation.1", hidden, 2 * hidden)
    if connector:
        shapes.update(connector_shapes(config))
    return shapes


def lora_shapes(config: GoldenConfig) -> Shapes:
    """Kohya names, down (rank, in) and up (out, rank), for every Linear of every block. No alpha: it is not
    drawn.
    """
    shapes: Shapes = {}
    for name, shape in block_shapes(config).items():
        if name.endswith(".weight"):
            module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            shapes[f"{module}.lora_down.weight"] = (config.rank, shape[1])
            shapes[f"{module}.lora_up.weight"] = (shape[0], config.rank)
    return shapes


def vae_shapes(
    ch: int, multipliers: tuple[int, ...] = (1, 2, 4, 4), blocks: int = 2, latent: int = 16
) -> Shapes:
    """The FLUX autoencoder (`ae.safetensors`) at base width `ch`: public key names, no prefix."""
    shapes: Shapes = {}

    def conv(name: str, n_in: int, n_out: int, kernel: int = 3) -> None:
        shapes[f"{name}.weight"] = (n_out, n_in, kernel, kernel)
        shapes[f"{name}.bias"] = (n_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = (width,)
        shapes[f"{name}.bias"] = (width,)

    def resnet(name: str, n_in: int, n_out: int) -> None:
        norm(f"{name}.norm1", n_in)
        conv(f"{name}.conv1", n_in, n_out)
        norm(f"{name}.norm2", n_out)
        conv(f"{name}.conv2", n_out, n_out)
        if n_in != n_out:
            conv(f"{name}.nin_shortcut", n_in, n_out, 1)

    def middle(name: str, width: int) -> None:
        resnet(f"{name}.block_1", width, width)
        norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", width, width, 1)
        resnet(f"{name}.block_2", width, width)

    widths = [ch * m for m in multipliers]
    conv("encoder.conv_in", 3, ch)
    width = ch
    for level, out in enumerate(widths):
        for n in range(blocks):
            resnet(f"encoder.down.{level}.block.{n}", width, out)
            width = out
        if level < len(widths) - 1:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder.mid", width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", width, 2 * latent)

    conv("decoder.conv_in", latent, width)
    middle("decoder.mid", width)
    for level in reversed(range(len(widths))):
        for n in range(blocks + 1):
            resnet(f"decoder.up.{level}.block.{n}", width, widths[level])
            width = widths[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", width, 3)
    return shapes


def dit_weights(config: GoldenConfig, connector: bool = True) -> Weights:
    """The transformer of `config`, bfloat16, under its public key names."""
    return {name: draw(name, shape, config.seed) for name, shape in dit_shapes(config, connector).items()}


def vae_weights(config: GoldenConfig) -> Weights:
    """The autoencoder of `config`, bfloat16, under its public key names (`vae.` is a prefix of the draw
    only).
    """
    return {name: draw(f"vae.{name}", shape, config.seed) for name, shape in vae_shapes(config.ch).items()}


def lora_weights(config: GoldenConfig) -> Weights:
    """The LoRA of `config` with one `.alpha` per module."""
    weights = {name: draw(name, shape, config.seed) for name, shape in lora_shapes(config).items()}
    for name in [n for n in weights if n.endswith(".lora_down.weight")]:
        weights[name.replace(".lora_down.weight", ".alpha")] = torch.tensor(config.alpha)
    return weights


@dataclass(frozen=True)
class Golden:
    """One golden file: its configuration and its tensors (names and shapes in tests/data/README.md)."""

    config: GoldenConfig
    tensors: Weights

    @property
    def image(self) -> torch.Tensor:
        """The input picture as ComfyUI gives it: (1,H,W,3) float32 in [0,1]."""
        return self.tensors["image"].float().div(255).unsqueeze(0)


def load_golden(name: str) -> Golden:
    """`name` is "base" or "lora"."""
    path = DATA / f"{name}.safetensors"
    with safe_open(str(path), "pt") as file:
        found = json.loads(file.metadata()["config"])
    known = {f.name for f in fields(GoldenConfig)}
    return Golden(GoldenConfig(**{k: v for k, v in found.items() if k in known}), load_file(str(path)))
