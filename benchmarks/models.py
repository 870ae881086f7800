"""Random weights of any size, drawn tensor by tensor when asked for, under the released names.

A transformer of 25 GB then never lies in memory twice: whoever reads a tensor gets it drawn, uses it and
drops it, as if it came from a file.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.sizes import ModelSize
from tests.harness.golden import GoldenConfig, dit_shapes, vae_shapes


class RandomWeights(Mapping[str, Tensor]):
    """Names and shapes as a mapping to tensors that are a function of name and seed.

    device: where to draw. kept: whether the tensors stay there; they come back on the CPU, as from a file,
    without it.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        seed: int = 0,
        device: str = "cpu",
        kept: bool = False,
    ):
        self._shapes = dict(shapes)
        self._dtype = dtype
        self._seed = seed
        self._device = device
        self._kept = kept

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        generator = torch.Generator(self._device).manual_seed(
            (zlib.crc32(name.encode()) + self._seed) % 2**32
        )
        values = torch.empty(shape, device=self._device).normal_(generator=generator)
        if name.endswith("scale_factor"):
            values.fill_(-0.91)
        elif name.endswith(".bias"):
            values *= 0.02
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        else:
            values /= math.sqrt(math.prod(shape[1:]))
        values = values.to(self._dtype)
        return values if self._kept else values.cpu()

    def meta(self, name: str) -> Tensor:
        return torch.empty(self._shapes[name], dtype=self._dtype, device="meta")

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def golden_config(size: ModelSize) -> GoldenConfig:
    """The same sizes in the words of the test harness, which knows all names and shapes."""
    return GoldenConfig(
        hidden=size.hidden,
        depth=size.doubles,
        single=size.singles,
        llm=size.prompt_width,
        ctx=size.context_width,
        ctx_heads=max(1, size.context_width // 128),
        ctx_depth=size.refiner_blocks,
        tokens=size.text_tokens,
        valid=size.real_tokens,
        ch=size.vae_width,
    )


def transformer(
    size: ModelSize, dtype: torch.dtype = torch.float32, device: str = "cpu", kept: bool = False
) -> RandomWeights:
    """The transformer with its connector."""
    return RandomWeights(dit_shapes(golden_config(size)), dtype, device=device, kept=kept)


def autoencoder(size: ModelSize, device: str = "cpu") -> RandomWeights:
    """The autoencoder, float32."""
    return RandomWeights(vae_shapes(size.vae_width), torch.float32, device=device)


def prompt(size: ModelSize) -> tuple[Tensor, Tensor]:
    """An empty-prompt cache: embeds (T, prompt_width), zeros where padding as the editor leaves them, and
    mask (T,).
    """
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(size.text_tokens, size.prompt_width, generator=generator)
    mask = (torch.arange(size.text_tokens) < size.real_tokens).to(torch.int64)
    return embeds * mask[:, None], mask


def picture(height: int, width: int) -> Tensor:
    """A picture as ComfyUI gives it, (1,H,W,3) in [0,1]: a smooth gradient and some noise."""
    generator = torch.Generator().manual_seed(2)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([rows, columns, (rows + columns) / 2], -1) + 0.1 * torch.randn(
        height, width, 3, generator=generator
    )
    return image.clamp(0, 1)[None]
