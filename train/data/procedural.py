"""The ray-caster as an endless dataset: index is the scene's seed, geometry is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from train.data.frame import Frame, make_frame
from train.scenes import HELD_OUT, render_scene

_VALIDATION = HELD_OUT + 500_000_000
"""Held out as well, and not among the scenes that a finished model is scored on."""


@dataclass(frozen=True)
class ProceduralConfig:
    """height, width in pixels, multiples of 16. first_seed: the seed of index 0. scenes: how many, 0 for no
    end. held_out: for validation, scenes that training never sees.
    """

    height: int = 192
    width: int = 256
    first_seed: int = 0
    scenes: int = 0
    held_out: bool = False


class Procedural:
    """Scenes from `first_seed` on. Raises ValueError when they would reach the seeds that are kept for
    evaluation.
    """

    def __init__(self, config: ProceduralConfig, name: str = "procedural"):
        if config.first_seed < 0 or config.first_seed + config.scenes > HELD_OUT:
            raise ValueError(
                f"{name}: seeds {config.first_seed} to {config.first_seed + config.scenes}; expected 0 to "
                f"{HELD_OUT}, the "
                "others are kept for evaluation"
            )
        self.name = name
        self.size = (config.height, config.width)
        self.length = config.scenes or None
        self._first = config.first_seed + (_VALIDATION if config.held_out else 0)
        self._config = config

    def files(self, index: int) -> Sequence[str]:
        """None: scenes are made."""
        return []

    def fingerprint(self) -> str:
        """The seed that index 0 stands for."""
        return f"procedural {self._first}"

    def read(self, index: int) -> Frame:
        """The scene of seed first_seed + index."""
        seed = self._first + index % (HELD_OUT - self._config.first_seed)
        scene = render_scene(seed, *self.size)
        return make_frame(
            scene.image,
            scene.depth,
            scene.normal,
            scene.mask,
            scene.mask,
            scene.intrinsics,
            f"{self.name}/{seed}",
        )
