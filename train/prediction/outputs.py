"""The files that are left for a picture: raw floats (NPZ, EXR, 16-bit PNG) and pictures to look at."""

from __future__ import annotations

import os
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fe2e_core.assumptions import DEFAULT_FOV, with_depth_and_camera
from fe2e_core.depth_decoding import DEFAULT_RATIO, DepthStyle, decode_depth
from fe2e_core.exr import EXR_PRESETS, write_exr
from fe2e_core.geometry import encode_normal
from fe2e_core.npz import write_npz
from fe2e_core.png16 import encode_png16
from fe2e_core.shading import clay

_HIDDEN = ".fe2e"


@dataclass(frozen=True)
class OutputOptions:
    """formats: of FORMATS. image: whether NPZ files hold the picture. compress: NPZ files. preset: of
    EXR_PRESETS. fov, far_near_ratio: what EXR files assume of the camera (horizontal, degrees) and the depth
    range. near_white: how depth pictures are drawn.
    """

    formats: tuple[str, ...] = ("npz",)
    image: bool = False
    compress: bool = True
    preset: str = next(iter(EXR_PRESETS))
    fov: float = DEFAULT_FOV
    far_near_ratio: float = DEFAULT_RATIO
    near_white: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise ValueError(f"formats: found {', '.join(unknown) or 'none'}, expected some of {', '.join(FORMATS)}")
        if self.preset not in EXR_PRESETS:
            raise ValueError(f"preset: found {self.preset!r}, expected one of {', '.join(EXR_PRESETS)}")
        if not 1 <= self.fov <= 170:
            raise ValueError(f"fov: found {self.fov}, expected 1 to 170 degrees")
        if not self.far_near_ratio > 1:
            raise ValueError(f"far_near_ratio: found {self.far_near_ratio}, expected a number above 1")

    def endings(self) -> tuple[str, ...]:
        """What is added to a picture's name, file by file."""
        return tuple(ending for name in self.formats for ending in FORMATS[name])


Write = Callable[[Path, dict, OutputOptions], None]


def _npz(path: Path, geometry: dict, options: OutputOptions) -> None:
    write_npz(path, geometry, image=options.image, compress=options.compress)


def _exr(path: Path, geometry: dict, options: OutputOptions) -> None:
    full = with_depth_and_camera(geometry, fov_x_degrees=options.fov, far_near_ratio=options.far_near_ratio)
    write_exr(path, full, 0, options.preset)


def _depth16(path: Path, geometry: dict, options: OutputOptions) -> None:
    path.write_bytes(
        encode_png16(
            (geometry["log_depth"][0] + 1) / 2,
            text={"Software": "FE2E", "Comment": "log_depth = 2 value / 65535 - 1"},
        )
    )


def _normal16(path: Path, geometry: dict, options: OutputOptions) -> None:
    path.write_bytes(
        encode_png16(
            (geometry["normal"][0] + 1) / 2,
            text={"Software": "FE2E", "Comment": "normal = 2 value / 65535 - 1, OpenCV axes (x right, y down, z forward)"},
        )
    )


def _save(path: Path, picture: Tensor) -> None:
    """(H,W) or (H,W,3) in [0,1] as an 8-bit PNG."""
    Image.fromarray(picture.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()).save(path)


def _depth_view(path: Path, geometry: dict, options: OutputOptions) -> None:
    style = DepthStyle("disparity", near_white=options.near_white)
    _save(path, decode_depth(geometry["log_depth"], geometry["mask"], style).picture[0])


def _normal_view(path: Path, geometry: dict, options: OutputOptions) -> None:
    _save(path, encode_normal(geometry["normal"][0], "OpenGL"))


def _clay_view(path: Path, geometry: dict, options: OutputOptions) -> None:
    _save(path, clay(geometry["normal"])[0])


FORMATS: dict[str, dict[str, Write]] = {
    "npz": {".npz": _npz},
    "exr": {".exr": _exr},
    "png16": {".log_depth.png": _depth16, ".normal.png": _normal16},
    "pictures": {".depth_view.png": _depth_view, ".normal_view.png": _normal_view},
    "clay": {".clay_view.png": _clay_view},
}
"""Name of a format -> what it adds to a picture's name -> what writes that file."""


class Store:
    """The output folder. Every file is finished under another name, in a hidden folder, before it gets its own."""

    def __init__(self, folder: Path, options: OutputOptions):
        self.folder = folder
        self.options = options
        self._partial = folder / _HIDDEN / "partial"
        self._notes = folder / _HIDDEN / "bad"

    def begin(self) -> None:
        """Make the folder; remove what a killed run left half-written. One process, before all others."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def end(self) -> None:
        """Remove what is only needed while working, and list the bad inputs. One process, after all others."""
        lines = [path.read_text(encoding="utf-8") for path in sorted(self._notes.rglob("*.txt"))]
        listing = self.folder / "bad.tsv"
        if lines:
            self.replace(listing, lambda path: path.write_text("".join(lines), encoding="utf-8"))
        else:
            listing.unlink(missing_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)
        for place, _, _ in os.walk(self._partial.parent, topdown=False):
            _remove_if_empty(Path(place))

    def replace(self, path: Path, write: Callable[[Path], object]) -> None:
        """Have `write` make a file elsewhere, then give it its name. Raises OSError."""
        self._partial.mkdir(parents=True, exist_ok=True)
        temporary = self._partial / f"{uuid.uuid4().hex}{path.suffix}"
        try:
            write(temporary)
            # on the disk before it has its name: not even a power failure leaves an empty file that counts as done
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def parts(self, shard: str = "") -> Path:
        """Where the results of a shard that is at work lie."""
        return self.folder / _HIDDEN / "shards" / shard

    def finished(self, stem: Path) -> bool:
        """Whether all files of a picture are there."""
        return all(os.path.exists(f"{stem}{ending}") for ending in self.options.endings())

    def save(self, stem: Path, geometry: dict) -> None:
        """Write all files of a picture. Raises OSError."""
        for name in self.options.formats:
            for ending, write in FORMATS[name].items():
                target = stem.with_name(stem.name + ending)
                self.replace(target, lambda path, write=write: write(path, geometry, self.options))

    def note(self, name: str, line: str) -> None:
        """Remember that the input of this name is bad, and why; kept until it is not."""
        self.replace(self._note(name), lambda path: path.write_text(line, encoding="utf-8"))

    def forget(self, name: str) -> None:
        """The input of this name is good now."""
        if self._notes.exists():
            self._note(name).unlink(missing_ok=True)

    def _note(self, name: str) -> Path:
        return self._notes / f"{name}.txt"

    def pack(self, shard: str, keys: Iterable[str]) -> None:
        """The results of a shard's samples as one tar, in the samples' order; then remove the single files.

        keys: of the samples, whose results are called by their numbers. Samples without results are left out.
        """
        parts = self.parts(shard)

        def write(path: Path) -> None:
            with tarfile.open(path, "w") as tar:
                for number, key in enumerate(keys):
                    stem = parts / part_name(number)
                    if self.finished(stem):
                        for ending in self.options.endings():
                            _add(tar, f"{stem}{ending}", key + ending)

        self.replace(self.folder / shard, write)
        self.drop(shard)

    def drop(self, shard: str) -> None:
        """Remove the single files of a shard whose tar is there."""
        shutil.rmtree(self.parts(shard), ignore_errors=True)


def part_name(number: int) -> str:
    """What the results of a shard's sample are called before they are packed."""
    return f"{number:08d}"


def _add(tar: tarfile.TarFile, path: str, name: str) -> None:
    # neither time nor owner: the same results are the same bytes, whenever and by whomever they were packed
    info = tarfile.TarInfo(name)
    info.size = os.path.getsize(path)
    with open(path, "rb") as file:
        tar.addfile(info, file)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
