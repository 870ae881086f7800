"""Small files in the format of Stable Diffusion 1.5: a checkpoint and ControlNets that ComfyUI's loaders
take.

ComfyUI tells SD 1.5 by its base width (320) and context width (768); how many levels and blocks there are it
reads from the weights. So the U-Net here has two levels with one block each, the autoencoder is the public
tiny one (TAESD), and only the text encoder (CLIP-L, whose size is fixed) has its full shape. The pictures are
noise: what these files prove is that a workflow loads and runs.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH = 320
CONTEXT = 768
Weights = dict[str, torch.Tensor]


class _Draw:
    """Collects seeded float16 weights: small random matrices, unit norms, zero biases."""

    def __init__(self, seed: int) -> None:
        self.weights: Weights = {}
        self.generator = torch.Generator().manual_seed(seed)

    def matrix(self, name: str, *shape: int, bias: bool = True) -> None:
        fan_in = torch.Size(shape[1:]).numel()
        values = torch.empty(shape).normal_(0, fan_in**-0.5, generator=self.generator)
        self.weights[f"{name}.weight"] = values.half()
        if bias:
            self.weights[f"{name}.bias"] = torch.zeros(shape[0], dtype=torch.float16)

    def conv(self, name: str, n_in: int, n_out: int, kernel: int = 3, bias: bool = True) -> None:
        self.matrix(name, n_out, n_in, kernel, kernel, bias=bias)

    def norm(self, name: str, width: int) -> None:
        self.weights[f"{name}.weight"] = torch.ones(width, dtype=torch.float16)
        self.weights[f"{name}.bias"] = torch.zeros(width, dtype=torch.float16)

    def resnet(self, name: str, n_in: int, n_out: int) -> None:
        self.norm(f"{name}.in_layers.0", n_in)
        self.conv(f"{name}.in_layers.2", n_in, n_out)
        self.matrix(f"{name}.emb_layers.1", n_out, 4 * WIDTH)
        self.norm(f"{name}.out_layers.0", n_out)
        self.conv(f"{name}.out_layers.3", n_out, n_out)
        if n_in != n_out:
            self.conv(f"{name}.skip_connection", n_in, n_out, 1)

    def transformer(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm", width)
        self.conv(f"{name}.proj_in", width, width, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, context in (("attn1", width), ("attn2", CONTEXT)):
            self.matrix(f"{block}.{attention}.to_q", width, width, bias=False)
            self.matrix(f"{block}.{attention}.to_k", width, context, bias=False)
            self.matrix(f"{block}.{attention}.to_v", width, context, bias=False)
            self.matrix(f"{block}.{attention}.to_out.0", width, width)
        self.matrix(f"{block}.ff.net.0.proj", 8 * width, width)
        self.matrix(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            self.norm(f"{block}.{norm}", width)
        self.conv(f"{name}.proj_out", width, width, 1)

    def encoder(self, prefix: str) -> None:
        """The half that U-Net and ControlNet share: time embedding, two levels, middle."""
        self.matrix(f"{prefix}time_embed.0", 4 * WIDTH, WIDTH)
        self.matrix(f"{prefix}time_embed.2", 4 * WIDTH, 4 * WIDTH)
        self.conv(f"{prefix}input_blocks.0.0", 4, WIDTH)
        self.resnet(f"{prefix}input_blocks.1.0", WIDTH, WIDTH)
        self.conv(f"{prefix}input_blocks.2.0.op", WIDTH, WIDTH)
        self.resnet(f"{prefix}input_blocks.3.0", WIDTH, WIDTH)
        self.transformer(f"{prefix}input_blocks.3.1", WIDTH)
        self.resnet(f"{prefix}middle_block.0", WIDTH, WIDTH)
        self.transformer(f"{prefix}middle_block.1", WIDTH)
        self.resnet(f"{prefix}middle_block.2", WIDTH, WIDTH)


def controlnet(seed: int) -> Weights:
    """A ControlNet under its original key names."""
    draw = _Draw(seed)
    draw.encoder("control_model.")
    for n in range(4):
        draw.conv(f"control_model.zero_convs.{n}.0", WIDTH, WIDTH, 1)
    draw.conv("control_model.middle_block_out.0", WIDTH, WIDTH, 1)
    widths = (3, 16, 16, 32, 32, 96, 96, 256, WIDTH)
    for n, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        draw.conv(f"control_model.input_hint_block.{2 * n}", n_in, n_out)
    return draw.weights


def checkpoint(seed: int) -> Weights:
    """U-Net, text encoder and autoencoder in one file."""
    draw = _Draw(seed)
    unet = "model.diffusion_model."
    draw.encoder(unet)
    for n, transformer in enumerate((True, True, False, False)):
        draw.resnet(f"{unet}output_blocks.{n}.0", 2 * WIDTH, WIDTH)
        if transformer:
            draw.transformer(f"{unet}output_blocks.{n}.1", WIDTH)
    draw.conv(f"{unet}output_blocks.1.2.conv", WIDTH, WIDTH)
    draw.norm(f"{unet}out.0", WIDTH)
    draw.conv(f"{unet}out.2", WIDTH, 4)
    _text_encoder(draw, "cond_stage_model.transformer.text_model.")
    _autoencoder(draw, "first_stage_model.")
    return draw.weights


def _text_encoder(draw: _Draw, prefix: str) -> None:
    draw.weights[f"{prefix}embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    draw.matrix(f"{prefix}embeddings.token_embedding", 49408, CONTEXT, bias=False)
    draw.matrix(f"{prefix}embeddings.position_embedding", 77, CONTEXT, bias=False)
    for n in range(12):
        layer = f"{prefix}encoder.layers.{n}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            draw.matrix(f"{layer}.self_attn.{part}", CONTEXT, CONTEXT)
        draw.norm(f"{layer}.layer_norm1", CONTEXT)
        draw.norm(f"{layer}.layer_norm2", CONTEXT)
        draw.matrix(f"{layer}.mlp.fc1", 4 * CONTEXT, CONTEXT)
        draw.matrix(f"{layer}.mlp.fc2", CONTEXT, 4 * CONTEXT)
    draw.norm(f"{prefix}final_layer_norm", CONTEXT)


def _autoencoder(draw: _Draw, prefix: str) -> None:
    """TAESD: convolutions of width 64 in the order of their nn.Sequential."""

    def block(name: str) -> None:
        for n in (0, 2, 4):
            draw.conv(f"{name}.conv.{n}", 64, 64)

    encoder, decoder = f"{prefix}taesd_encoder", f"{prefix}taesd_decoder"
    draw.conv(f"{encoder}.0", 3, 64)
    for n in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        block(f"{encoder}.{n}")
    for n in (2, 6, 10):
        draw.conv(f"{encoder}.{n}", 64, 64, bias=False)
    draw.conv(f"{encoder}.14", 64, 4)

    draw.conv(f"{decoder}.1", 4, 64)
    for n in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        block(f"{decoder}.{n}")
    for n in (7, 12, 17):
        draw.conv(f"{decoder}.{n}", 64, 64, bias=False)
    draw.conv(f"{decoder}.19", 64, 3)
    draw.weights[f"{prefix}vae_scale"] = torch.tensor(1.0)
    draw.weights[f"{prefix}vae_shift"] = torch.tensor(0.0)


def write_sd15(models: Path) -> None:
    """The files that the ControlNet workflow names, below `models`."""
    files = {
        "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": checkpoint(1),
        "controlnet/control_v11f1p_sd15_depth_fp16.safetensors": controlnet(2),
        "controlnet/control_v11p_sd15_normalbae_fp16.safetensors": controlnet(3),
    }
    for name, weights in files.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, models / name)
