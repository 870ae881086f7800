"""The sizes of the models that are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a transformer, its connector and its autoencoder; all widths in channels.

    hidden: transformer width (heads of 128). doubles, singles: blocks. prompt_width: the language model's
    embeddings, context_width: what the connector makes of them. text_tokens: the prompt cache's length,
    real_tokens: those that are not padding. vae_width: base width of the autoencoder.
    """

    name: str
    hidden: int
    doubles: int
    singles: int
    prompt_width: int
    context_width: int
    vae_width: int
    text_tokens: int = 640
    real_tokens: int = 32
    refiner_blocks: int = 2
    pooled: int = 768

    @property
    def distinct_tokens(self) -> int:
        """Text tokens once identical ones are merged: every padding row is the same row."""
        return min(self.text_tokens, self.real_tokens + 1)


#: Step1X-Edit with the FLUX autoencoder. How many of its 640 tokens are real is read from the prompt cache
#: at run time; 32 stands in for it here.
RELEASED = ModelSize("released", 3072, 19, 38, 3584, 4096, 128)
#: Every width a quarter, so every matrix product a sixteenth; depth and tokens as released.
SIXTEENTH = ModelSize("one sixteenth", 768, 19, 38, 896, 1024, 32)
#: For checking the scripts themselves.
TINY = ModelSize("tiny", 256, 2, 3, 64, 128, 32, text_tokens=24, real_tokens=5)
