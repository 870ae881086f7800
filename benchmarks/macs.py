"""Multiply-accumulates and parameters of the transformer, the connector and the autoencoder, by formula.

Counted are matrix products, convolutions and attention, one MAC each where a FLOP counter says two; norms,
activations and rotary embeddings are left out (well under a percent). Sources: the published FLUX.1
architecture (github.com/black-forest-labs/flux, `model.py`, `modules/layers.py`, `modules/autoencoder.py`)
and Step1X-Edit's connector (github.com/stepfun-ai/Step1X-Edit, `modules/connector_edit.py`).
tests/nodes/test_macs.py holds the formulas against torch's own FLOP counter on the real modules.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from benchmarks.report import Table, section
from benchmarks.sizes import RELEASED, SIXTEENTH, ModelSize

#: Channels of one token: 16 latent channels times a 2x2 patch.
TOKEN = 64
#: Width of the sinusoidal time embedding.
TIME = 256


def image_tokens(height: int, width: int) -> int:
    """Tokens of the sequence `[zeros | image]` for a picture in pixels (multiples of 16): both halves."""
    return 2 * (height // 16) * (width // 16)


def _attention(tokens: int, width: int) -> int:
    """q k^T and its product with v: 2 tokens^2 width, whatever the number of heads."""
    return 2 * tokens**2 * width


def transformer_macs(size: ModelSize, image: int, text: int, folded: bool = False) -> int:
    """One pass over one sequence of `image` + `text` tokens.

    A double block has two streams of qkv (3 h^2), projection (h^2) and a four times wider MLP (8 h^2) per
    token; a single block has the same 12 h^2 in two Linears. Modulation works on one vector: 6 h^2 a stream
    in a double block, 3 h^2 in a single one, 2 h^2 at the end; folded it is gone.
    """
    h, tokens, blocks = size.hidden, image + text, size.doubles + size.singles
    embed = image * TOKEN * h + text * size.context_width * h + (TIME + size.pooled) * h + 2 * h * h
    body = blocks * (12 * h * h * tokens + _attention(tokens, h))
    modulation = 0 if folded else (12 * size.doubles + 3 * size.singles + 2) * h * h
    return embed + body + modulation + image * h * TOKEN


def modulation_parameters(size: ModelSize) -> int:
    """Parameters of the Linears that folding replaces, weights and biases."""
    h = size.hidden
    outputs = (12 * size.doubles + 3 * size.singles + 2) * h
    return outputs * (h + 1)


def transformer_parameters(size: ModelSize, folded: bool = False) -> int:
    """Parameters of the transformer without its connector; folded, a modulation Linear is its output only."""
    h = size.hidden

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    embed = (
        linear(TOKEN, h)
        + linear(size.context_width, h)
        + linear(TIME, h)
        + linear(size.pooled, h)
        + 2 * linear(h, h)
    )
    stream = linear(h, 3 * h) + linear(h, h) + linear(h, 4 * h) + linear(4 * h, h) + 2 * 128
    single = linear(h, 7 * h) + linear(5 * h, h) + 2 * 128
    rest = embed + size.doubles * 2 * stream + size.singles * single + linear(h, TOKEN)
    modulation = modulation_parameters(size)
    return rest + (modulation // (h + 1) if folded else modulation)


def connector_macs(size: ModelSize) -> int:
    """One run of the connector over one prompt: input layer and refiner blocks per token, the rest once."""
    c, t = size.context_width, size.text_tokens
    tokens = t * (
        size.prompt_width * c + size.refiner_blocks * 12 * c * c
    ) + size.refiner_blocks * _attention(t, c)
    once = (
        (TIME + size.prompt_width) * c
        + 2 * c * c
        + size.refiner_blocks * 2 * c * c
        + size.prompt_width * size.pooled
    )
    return tokens + once


def connector_parameters(size: ModelSize) -> int:
    c, w = size.context_width, size.prompt_width
    block = 4 * c + (c + 1) * 3 * c + (c + 1) * c + (c + 1) * 4 * c + (4 * c + 1) * c + (c + 1) * 2 * c
    embedders = 2 * (w + 1) * c + (TIME + 1) * c + 2 * (c + 1) * c
    return embedders + size.refiner_blocks * block + (w + 1) * size.pooled + 1


_MULTIPLIERS = (1, 2, 4, 4)
_LATENT = 16
_RESNETS = 2


def _resnet(inputs: int, outputs: int) -> int:
    """Per pixel: two 3x3 convolutions, and a 1x1 one where the width changes."""
    return 9 * inputs * outputs + 9 * outputs * outputs + (inputs * outputs if inputs != outputs else 0)


def _middle(width: int, pixels: int) -> int:
    return pixels * (2 * _resnet(width, width) + 4 * width * width) + _attention(pixels, width)


def encoder_macs(width: int, height: int, wide: int) -> int:
    """The FLUX autoencoder's encoder of base width `width` over a picture of height x wide pixels."""
    pixels = height * wide
    total, channels = pixels * 9 * 3 * width, width
    for level, multiplier in enumerate(_MULTIPLIERS):
        outputs = width * multiplier
        for _ in range(_RESNETS):
            total += pixels * _resnet(channels, outputs)
            channels = outputs
        if level < len(_MULTIPLIERS) - 1:
            pixels //= 4
            total += pixels * 9 * channels * channels
    return total + _middle(channels, pixels) + pixels * 9 * channels * 2 * _LATENT


def decoder_macs(width: int, height: int, wide: int) -> int:
    """The decoder, for one latent whose picture is height x wide pixels."""
    pixels, channels = height * wide // 64, width * _MULTIPLIERS[-1]
    total = pixels * 9 * _LATENT * channels + _middle(channels, pixels)
    for level in reversed(range(len(_MULTIPLIERS))):
        outputs = width * _MULTIPLIERS[level]
        for _ in range(_RESNETS + 1):
            total += pixels * _resnet(channels, outputs)
            channels = outputs
        if level:
            pixels *= 4
            total += pixels * 9 * channels * channels
    return total + pixels * 9 * channels * 3


def _conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return (inputs * kernel * kernel + 1) * outputs


def autoencoder_parameters(width: int) -> int:
    """Encoder and decoder, weights, biases and norms."""

    def resnet(inputs: int, outputs: int) -> int:
        shortcut = _conv(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + _conv(inputs, outputs) + 2 * outputs + _conv(outputs, outputs) + shortcut

    last = width * _MULTIPLIERS[-1]
    middle = 2 * resnet(last, last) + 2 * last + 4 * _conv(last, last, 1)
    encoder, channels = _conv(3, width), width
    for level, multiplier in enumerate(_MULTIPLIERS):
        for _ in range(_RESNETS):
            encoder += resnet(channels, width * multiplier)
            channels = width * multiplier
        encoder += _conv(channels, channels) if level < len(_MULTIPLIERS) - 1 else 0
    encoder += middle + 2 * last + _conv(last, 2 * _LATENT)
    decoder, channels = _conv(_LATENT, last) + middle, last
    for level in reversed(range(len(_MULTIPLIERS))):
        for _ in range(_RESNETS + 1):
            decoder += resnet(channels, width * _MULTIPLIERS[level])
            channels = width * _MULTIPLIERS[level]
        decoder += _conv(channels, channels) if level else 0
    return encoder + decoder + 2 * width + _conv(width, 3)


@dataclass(frozen=True)
class Counted:
    """MACs of one picture, by stage."""

    encode: int
    connector: int
    transformer: int
    decode: int

    @property
    def total(self) -> int:
        return self.encode + self.connector + self.transformer + self.decode


def reference_counted(size: ModelSize, height: int, width: int) -> Counted:
    """The reference's procedure: two identical sequences in one batch, the connector for both at every
    picture.
    """
    return Counted(
        encoder_macs(size.vae_width, height, width),
        2 * connector_macs(size),
        2 * transformer_macs(size, image_tokens(height, width), size.text_tokens),
        2 * decoder_macs(size.vae_width, height, width),
    )


def ours_counted(size: ModelSize, height: int, width: int, merged: bool = True, folded: bool = True) -> Counted:
    """Ours: one sequence, cached conditioning; merged: identical text tokens are one token."""
    text = size.distinct_tokens if merged else size.text_tokens
    return Counted(
        encoder_macs(size.vae_width, height, width),
        0,
        transformer_macs(size, image_tokens(height, width), text, folded),
        2 * decoder_macs(size.vae_width, height, width),
    )


def table(size: ModelSize, height: int, width: int) -> Table:
    """Counted operations, G MACs, of the reference's procedure and of ours."""
    rows = []
    reference = reference_counted(size, height, width)
    for name, counted in (
        ("reference's procedure", reference),
        ("ours, one copy, cached, folded", ours_counted(size, height, width, False)),
        ("ours, and merged text tokens", ours_counted(size, height, width)),
    ):
        stages = (counted.encode, counted.connector, counted.transformer, counted.decode, counted.total)
        both = (
            (reference.connector + reference.transformer) / counted.transformer
            if counted is not reference
            else 1.0
        )
        rows.append(
            [
                name,
                *(f"{s / 1e9:,.1f}" for s in stages),
                f"{both:.2f}",
                f"{reference.total / counted.total:.2f}",
            ]
        )
    return Table(
        [
            "G MACs a picture",
            "encode",
            "connector",
            "transformer",
            "decode",
            "whole",
            "connector + transformer, ratio",
            "whole, ratio",
        ],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Counted operations and parameters.")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    arguments = parser.parse_args()
    text = [
        "Counted by formula (`benchmarks/macs.py`, checked against torch's FLOP counter), not measured. "
        "640 text tokens, of which 32 are taken as real (the prompt cache says how many are); 33 remain "
        "merged. Merging is used where its mask costs less than it saves: on CPUs so far."
    ]
    for size, height, width in ((RELEASED, 768, 1024), (SIXTEENTH, 384, 512)):
        text += [f"**{size.name} size, {width}x{height}**", table(size, height, width).markdown()]
        kept, whole = transformer_parameters(size, folded=True), transformer_parameters(size)
        text.append(
            f"Parameters: transformer {whole / 1e9:.3f} B, of which folding removes "
            f"{(whole - kept) / 1e9:.3f} B; connector {connector_parameters(size) / 1e9:.3f} B, not kept; "
            f"autoencoder {autoencoder_parameters(size.vae_width) / 1e6:.1f} M."
        )
    section(
        "operations",
        "Operations, counted",
        "\n\n".join(text),
        " ".join(["python -m benchmarks.macs", *sys.argv[1:]]),
        arguments.write,
    )


if __name__ == "__main__":
    main()
