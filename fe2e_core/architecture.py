"""Names and shapes that a transformer and an autoencoder of this family must have, for any width and depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .folding import CONSTANT, is_modulation

#: Width of one attention head; ComfyUI's Flux and the release know no other.
HEAD_WIDTH = 128
#: 16 latent channels in patches of 2x2.
TOKEN_WIDTH = 64
LATENT_CHANNELS = 16

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TransformerSize:
    """hidden: width, a multiple of 128. context: width of the text tokens. pooled: width of the pooled vector."""

    hidden: int
    context: int
    pooled: int
    double_blocks: int
    single_blocks: int


def transformer_shapes(size: TransformerSize, folded: bool, guidance: bool = False) -> Shapes:
    """Every tensor of the FLUX-shaped transformer without the connector, public FLUX names.

    folded: `.constant` (out,) in the place of each modulation Linear's weight and bias. guidance: with an input for
    the guidance scale (FLUX.1 dev, Kontext), which no folded transformer has.
    """
    h = size.hidden
    linear = {"img_in": (h, TOKEN_WIDTH), "txt_in": (h, size.context),
              "time_in.in_layer": (h, 256), "time_in.out_layer": (h, h),
              "vector_in.in_layer": (h, size.pooled), "vector_in.out_layer": (h, h),
              "final_layer.linear": (TOKEN_WIDTH, h), "final_layer.adaLN_modulation.1": (2 * h, h)}
    if guidance:
        linear |= {"guidance_in.in_layer": (h, 256), "guidance_in.out_layer": (h, h)}
    norms: list[str] = []
    for i in range(size.double_blocks):
        for side in ("img", "txt"):
            block = f"double_blocks.{i}.{side}"
            linear |= {f"{block}_mod.lin": (6 * h, h), f"{block}_attn.qkv": (3 * h, h), f"{block}_attn.proj": (h, h),
                       f"{block}_mlp.0": (4 * h, h), f"{block}_mlp.2": (h, 4 * h)}
            norms.append(f"{block}_attn.norm")
    for i in range(size.single_blocks):
        block = f"single_blocks.{i}"
        linear |= {f"{block}.linear1": (7 * h, h), f"{block}.linear2": (h, 5 * h), f"{block}.modulation.lin": (3 * h, h)}
        norms.append(f"{block}.norm")
    shapes: Shapes = {f"{norm}.{kind}_norm.scale": (HEAD_WIDTH,) for norm in norms for kind in ("query", "key")}
    for module, shape in linear.items():
        if folded and is_modulation(module):
            shapes[f"{module}.{CONSTANT}"] = shape[:1]
        else:
            shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    return shapes


def autoencoder_shapes(width: int, multipliers: tuple[int, ...], blocks: int) -> Shapes:
    """Every tensor of the FLUX autoencoder, `ae.safetensors` names.

    width: channels of the first convolution. multipliers: channels of each level in units of width, finest first.
    blocks: residual blocks of each encoder level; the decoder has one more.
    """
    shapes: Shapes = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    def residual(name: str, c_in: int, c_out: int) -> None:
        layer(f"{name}.norm1", c_in)
        layer(f"{name}.conv1", c_out, c_in, 3, 3)
        layer(f"{name}.norm2", c_out)
        layer(f"{name}.conv2", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.nin_shortcut", c_out, c_in, 1, 1)

    def middle(name: str, c: int) -> None:
        residual(f"{name}.block_1", c, c)
        layer(f"{name}.attn_1.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.attn_1.{part}", c, c, 1, 1)
        residual(f"{name}.block_2", c, c)

    channels = [width * m for m in multipliers]
    layer("encoder.conv_in", width, 3, 3, 3)
    c = width
    for level, c_out in enumerate(channels):
        for i in range(blocks):
            residual(f"encoder.down.{level}.block.{i}", c, c_out)
            c = c_out
        if level < len(channels) - 1:
            layer(f"encoder.down.{level}.downsample.conv", c, c, 3, 3)
    middle("encoder.mid", c)
    layer("encoder.norm_out", c)
    layer("encoder.conv_out", 2 * LATENT_CHANNELS, c, 3, 3)
    layer("decoder.conv_in", c, LATENT_CHANNELS, 3, 3)
    middle("decoder.mid", c)
    for level in reversed(range(len(channels))):
        for i in range(blocks + 1):
            residual(f"decoder.up.{level}.block.{i}", c, channels[level])
            c = channels[level]
        if level:
            layer(f"decoder.up.{level}.upsample.conv", c, c, 3, 3)
    layer("decoder.norm_out", c)
    layer("decoder.conv_out", 3, c, 3, 3)
    return shapes


def missing(expected: Shapes, found: Mapping[str, object]) -> list[str]:
    """Names that are expected and not there."""
    return [name for name in expected if name not in found]
