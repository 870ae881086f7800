"""A pool of rendered training scenes on disk: pictures, depth labels, normals and masks as memory-mapped arrays.

Scenes of one size share one folder. Everything is what the autoencoder will see: the depth label of Eq. 7 in BF16
and the normals in the network's axes.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fe2e_core.geometry import normal_to_network
from fe2e_core.quantization import encode, percentile_range
from train.config import ScenePool
from train.scenes import HELD_OUT, Scene, render_scene

log = logging.getLogger(__name__)

Size = tuple[int, int]
_FORMAT = 2
"""Of the files: a pool of another format is rendered again. 2 has `log_range`."""


@dataclass(frozen=True)
class Sample:
    """One training sample, still pixels; B scenes of H x W.

    `image` (B,3,H,W) in [0,1]; `label` (B,H,W), depth label of Eq. 7 clipped to [-1,1] (decoding clamps as well);
    `normal` (B,3,H,W) unit, network axes; `valid` (B,H,W) bool. Not valid pixels are far (1) and face the camera.
    """

    image: Tensor
    label: Tensor
    normal: Tensor
    valid: Tensor

    def flipped(self) -> Sample:
        """Mirrored left to right: the x component of the normals changes its sign with the picture."""
        sign = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
        return Sample(self.image.flip(-1), self.label.flip(-1), self.normal.flip(-1) * sign, self.valid.flip(-1))


def label_scene(scene: Scene) -> Sample:
    """What one rendered scene teaches: BF16 log-depth label between the percentiles of the valid pixels."""
    label = encode(scene.depth.clamp_min(1e-3), percentile_range(scene.depth, scene.mask), bf16="nearest")
    label = torch.where(scene.mask, label.clamp(-1, 1), 1.0)
    return Sample(
        scene.image.permute(2, 0, 1)[None],
        label[None],
        normal_to_network(scene.normal).permute(2, 0, 1)[None],
        scene.mask[None],
    )


class Pool:
    """The scenes of one size, open on disk. Index with an integer array.

    `log_range` (count,) float32: what the two ends of a scene's labels are apart, in ln(depth).
    """

    def __init__(self, folder: Path, size: Size, count: int, mode: str = "r"):
        height, width = size
        self.size, self.count = size, count
        kinds = {
            "image": (np.uint8, (count, 3, height, width)),
            "label": (np.float16, (count, height, width)),
            "normal": (np.int8, (count, 3, height, width)),
            "valid": (np.bool_, (count, height, width)),
            "log_range": (np.float32, (count,)),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, (kind, shape) in kinds.items():
            file = folder / f"{name}.bin"
            if mode == "r" or file.exists():
                array = np.memmap(file, kind, "r" if mode == "r" else "r+", shape=shape)
            else:
                array = np.memmap(file, kind, "w+", shape=shape)
            setattr(self, name, array)

    def write(self, index: int, scene: Scene) -> None:
        sample, span = label_scene(scene), percentile_range(scene.depth, scene.mask)
        self.image[index] = (sample.image[0] * 255).round().to(torch.uint8).numpy()
        self.label[index] = sample.label[0].numpy()
        self.normal[index] = (sample.normal[0] * 127).round().to(torch.int8).numpy()
        self.valid[index] = sample.valid[0].numpy()
        self.log_range[index] = span.high - span.low

    def read(self, index: np.ndarray) -> Sample:
        normal = torch.from_numpy(self.normal[index]).float()
        return Sample(
            torch.from_numpy(self.image[index]).float() / 255,
            torch.from_numpy(self.label[index]).float(),
            normal / (normal * normal).sum(1, keepdim=True).sqrt().clamp_min(1),
            torch.from_numpy(self.valid[index]),
        )


def scene_numbers(config: ScenePool) -> dict[Size, list[int]]:
    """Which scene numbers have which size."""
    groups: dict[Size, list[int]] = {}
    for number in range(config.scenes):
        groups.setdefault(config.sizes[number % len(config.sizes)], []).append(number)
    return groups


def pool_folder(root: Path, size: Size) -> Path:
    return root / f"{size[0]}x{size[1]}"


def _render_share(root: str, config: ScenePool, worker: int, workers: int) -> None:
    torch.set_num_threads(1)
    for size, numbers in scene_numbers(config).items():
        pool = Pool(pool_folder(Path(root), size), size, len(numbers), "r+")
        for index in range(worker, len(numbers), workers):
            pool.write(index, render_scene(config.first_seed + numbers[index], *size))


def build_pool(root: Path, config: ScenePool, on_step: Callable[[str], None] = log.info) -> dict[Size, Pool]:
    """Render the pool into `root`, or open the finished one of the same configuration.

    Raises ValueError when the seeds would reach the held-out ones.
    """
    if config.first_seed + config.scenes > HELD_OUT:
        raise ValueError(
            f"[pool] first_seed {config.first_seed} + scenes {config.scenes} reaches the held-out seeds "
            f"({HELD_OUT} and up); choose smaller ones"
        )
    done, stamp = root / "done.json", json.dumps([_FORMAT, asdict(config)], sort_keys=True)
    groups = scene_numbers(config)
    if not (done.exists() and done.read_text() == stamp):
        on_step(f"rendering {config.scenes} scenes")
        for size, numbers in groups.items():
            folder = pool_folder(root, size)
            for file in folder.glob("*.bin"):
                file.unlink()
            Pool(folder, size, len(numbers), "w+")
        context = multiprocessing.get_context("spawn")
        share = [(str(root), config, i, config.workers) for i in range(config.workers)]
        with context.Pool(config.workers) as processes:
            processes.starmap(_render_share, share, chunksize=1)
        temporary = done.with_suffix(".tmp")
        temporary.write_text(stamp)
        os.replace(temporary, done)
    return open_pools(root, config)


def open_pools(root: Path, config: ScenePool) -> dict[Size, Pool]:
    """The rendered pool at `root`, by size."""
    groups = scene_numbers(config)
    return {size: Pool(pool_folder(root, size), size, len(numbers)) for size, numbers in groups.items()}
