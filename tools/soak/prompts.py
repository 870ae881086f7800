"""Prompts for a running server: always the same one, to see whether it still works, and random ones to wear it out."""

from __future__ import annotations

import hashlib
import random
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.server import ComfyServer, Prompt, Result

CHECKPOINT = "fe2e-nano.safetensors"
#: Sides of the pictures and of what the network works at, in pixels.
SMALLEST, LARGEST = 64, 160


def write_picture(folder: Path, name: str = "soak.png") -> str:
    """A picture with smooth and sharp parts, of its own making; returns its name."""
    rows, columns = np.meshgrid(np.linspace(0, 1, 120), np.linspace(0, 1, 160), indexing="ij")
    disc = (columns - 0.4) ** 2 + (rows - 0.5) ** 2 < 0.05
    picture = np.stack([columns, rows, np.where(disc, 0.9, 0.2)], -1)
    Image.fromarray((picture * 255).astype(np.uint8)).save(folder / name)
    return name


class Prompts:
    """Prompts in API format. Inputs that are not given get the defaults that the server itself names."""

    def __init__(self, server: ComfyServer, picture: str = "soak.png", checkpoint: str = CHECKPOINT) -> None:
        self._info = server.object_info()
        self._folder = server.input
        self._picture = picture
        self._checkpoint = checkpoint

    def node(self, kind: str, **inputs: Any) -> dict[str, Any]:
        """One node. Sub-inputs of dynamic combos are given as `combo__sub`."""
        found = {name.replace("__", "."): value for name, value in inputs.items()}
        for name, (options, *rest) in self._info[kind]["input"].get("required", {}).items():
            if name in found:
                continue
            more = rest[0] if rest else {}
            if "default" in more:
                found[name] = more["default"]
            elif isinstance(options, list) or more.get("options"):
                found[name] = (options if isinstance(options, list) else more["options"])[0]
        return {"class_type": kind, "inputs": found}

    def foreign(self, chance: random.Random, prefix: str) -> Prompt:
        """A picture of a random size through nodes that are not ours."""
        width, height = chance.randint(SMALLEST, LARGEST), chance.randint(SMALLEST, LARGEST)
        return {
            "picture": self.node("LoadImage", image=self._picture),
            "scaled": self.node("ImageScale", image=["picture", 0], upscale_method="bilinear", width=width, height=height, crop="disabled"),
            "blurred": self.node("ImageBlur", image=["scaled", 0]),
            "saved": self.node("SaveImage", images=["blurred", 0], filename_prefix=prefix),
        }

    def estimate(self, width: int, height: int, size: dict[str, Any], fold: bool = True, dtype: str = "default") -> Prompt:
        """A picture of this size through the network; no output node yet."""
        source = {"source": "FE2E checkpoint", "source__checkpoint": self._checkpoint, "source__lora": "none",
                  "source__lora_strength": 1.0}  # fmt: skip
        return {
            "picture": self.node("LoadImage", image=self._picture),
            "scaled": self.node("ImageScale", image=["picture", 0], upscale_method="bilinear", width=width, height=height, crop="disabled"),
            "model": self.node("FE2ELoadModel", **source, weight_dtype=dtype, fold=fold),
            "estimate": self.node("FE2EEstimate", fe2e_model=["model", 0], image=["scaled", 0], **size),
        }

    def reference(self, prefix: str = "reference") -> Prompt:
        """The prompt whose result is known. Its picture has a new name each time, so that nothing of it is in a cache."""
        picture = f"{uuid.uuid4().hex} {self._picture}"
        shutil.copyfile(self._folder / self._picture, self._folder / picture)
        size = {"size": "longest side", "size__longest_side": 96}
        return self.estimate(96, 72, size) | {
            "picture": self.node("LoadImage", image=picture),
            "raw": self.node("FE2ESaveNPZ", geometry=["estimate", 0], filename_prefix=prefix),
            "depth": self.node("SaveImage", images=["estimate", 1], filename_prefix=prefix),
        }

    def wearing(self, chance: random.Random, prefix: str) -> Prompt:
        """Pictures, working sizes, weights and nodes at random."""
        width, height = (chance.randint(SMALLEST, LARGEST) for _ in range(2))
        longest = 16 * chance.randint(SMALLEST // 16, LARGEST // 16)
        sizes = [{"size": "longest side", "size__longest_side": longest}, {"size": "trained size"}, {"size": "native size"},
                 {"size": "tiled (large pictures)", "size__detail": chance.choice((1.0, 2.0)), "size__overlap": 0.25}]  # fmt: skip
        prompt = self.estimate(width, height, chance.choice(sizes))
        geometry = ["estimate", 0]
        if chance.random() < 0.5:
            prompt["calibrate"] = self.node("FE2ECalibrate", geometry=geometry, camera="estimate")
            geometry = ["calibrate", 0]
        ends = {
            "npz": self.node("FE2ESaveNPZ", geometry=geometry, filename_prefix=prefix),
            "exr": self.node("FE2ESaveEXR", geometry=geometry, filename_prefix=prefix),
            "png": self.node("FE2ESavePNG16", image=["estimate", 1], filename_prefix=prefix),
            "depth": self.node("SaveImage", images=["estimate", 1], filename_prefix=prefix),
            "mesh": self.node("FE2EMesh", geometry=geometry),
            "clay": self.node("FE2EClay", geometry=geometry),
            "decode": self.node("FE2ELogDepthDecode", geometry=geometry),
        }
        chosen = chance.sample(sorted(ends), chance.randint(1, 3))
        prompt |= {name: ends[name] for name in chosen}
        if "mesh" in chosen:
            prompt["glb"] = self.node("SaveGLB", mesh=["mesh", 0], filename_prefix=prefix)
        for name in ("clay", "decode"):
            if name in chosen:
                prompt[f"{name}_shown"] = self.node("PreviewImage", images=[name, 0])
        if not {"npz", "exr", "png", "depth", "glb", "clay", "decode"} & set(prompt):
            raise RuntimeError("a prompt without an output")
        return prompt


def digest(result: Result) -> str:
    """SHA-256 of what the reference prompt saved: the arrays and the pixels. The files are removed.

    Raises RuntimeError when nothing was computed for it.
    """
    found = hashlib.sha256()
    if "estimate" not in result.executed:
        raise RuntimeError("the reference prompt came out of the cache; it says nothing about the server")
    [archive], [picture] = result.files("raw", "files"), result.files("depth")
    with np.load(archive, allow_pickle=False) as arrays, Image.open(picture) as depth:
        for name in sorted(arrays.files):
            found.update(name.encode() + arrays[name].tobytes())
        found.update(np.asarray(depth).tobytes())
    archive.unlink()
    picture.unlink()
    return found.hexdigest()
