"""Pictures out of files, videos and WebDataset shards; whatever is wrong with one becomes a BadInput that names it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
SHARDS = (".tar",)


class BadInput(ValueError):
    """A picture, video or shard that cannot be used; the message says why, whoever asked knows which."""


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises BadInput."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput("there is no such file") from None
    except OSError as error:
        raise BadInput(f"it cannot be read ({error.strerror or error})") from error


def decode_picture(data: bytes) -> Tensor:
    """The bytes of an 8- or 16-bit picture -> (H,W,3) float32 in [0,1], sRGB as stored, upright.

    The orientation that cameras note is applied; alpha is dropped, grey repeated; of an animation the first
    picture counts. Raises BadInput for what is no picture, or one that ends too early.
    """
    if not data:
        raise BadInput("it is empty")
    try:
        with Image.open(BytesIO(data)) as image:
            if _has_16_bits(image):
                return _decode_deep(data)
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except BadInput:
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise BadInput(f"{len(data)} bytes that are no picture, or not a whole one ({error})") from error
    return torch.from_numpy(np.array(upright, dtype=np.float32) / 255.0)


def _has_16_bits(image: Image.Image) -> bool:
    # Pillow reads 16-bit colour as eight bits and cuts 16-bit grey off when it converts
    return image.mode.startswith("I") or any("16" in str(tile[3]) for tile in image.tile)


def _decode_deep(data: bytes) -> Tensor:
    import cv2

    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if array is None or array.dtype not in (np.uint8, np.uint16):
        found = "no picture" if array is None else f"pixels of {array.dtype}"
        raise BadInput(f"{len(data)} bytes with {found}; expected 8 or 16 bits a channel")
    return torch.from_numpy(array[..., ::-1].astype(np.float32) / np.iinfo(array.dtype).max)


class Video:
    """The frames of a video file, in order. Seeking by number is inexact in many files, so frames that are not
    wanted are passed over; decoding them costs little beside the network.

    frames: how many the file says it has, 0 where it does not. Raises BadInput when it cannot be opened.
    """

    def __init__(self, path: Path):
        import cv2

        if not path.is_file():
            raise BadInput("there is no such file")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise BadInput("it is no video that OpenCV can read; convert it to H.264 in MP4")
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self._capture.release()

    def skip(self) -> bool:
        """Pass over the next frame; False at the end."""
        return self._capture.grab()

    def frame(self) -> Tensor:
        """The frame last passed over, (H,W,3) float32 in [0,1]. Raises BadInput when it cannot be decoded."""
        good, array = self._capture.retrieve()
        if not good or array is None:
            raise BadInput("the frame cannot be decoded")
        return torch.from_numpy(array[..., ::-1].astype(np.float32) / 255.0)


@dataclass(frozen=True)
class Sample:
    """One sample of a shard. key: what its files have in common; picture: which of them is the picture, None
    without one; end: how many bytes of the shard lie before its end.
    """

    key: str
    picture: tarfile.TarInfo | None
    end: int


class Shard:
    """The samples of a WebDataset shard: neighbouring files of a tar that are called alike up to the first dot.

    extension: of the picture among a sample's files, such as "jpg" or "rgb.png"; "" for the first file that
    looks like a picture. Raises BadInput when the file is no tar.
    """

    def __init__(self, path: Path, extension: str = ""):
        if not path.is_file():
            raise BadInput("there is no such file")
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed by __exit__
        except (tarfile.TarError, OSError) as error:
            raise BadInput(f"it is no plain tar file ({error})") from error
        self._extension = extension.lower().lstrip(".")

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *exception: object) -> None:
        self._tar.close()

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order. Raises BadInput where the tar ends in the middle."""
        key: str | None = None
        picture: tarfile.TarInfo | None = None
        end = 0
        for member in self._members():
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if not member.isfile() or not stem or stem.startswith("__"):
                continue
            own = f"{folder}/{stem}" if folder else stem
            if own != key:
                if key is not None:
                    yield Sample(key, picture, end)
                key, picture = own, None
            if picture is None and self._is_picture(extension.lower()):
                picture = member
            end = member.offset_data + member.size
        if key is not None:
            yield Sample(key, picture, end)

    def _is_picture(self, extension: str) -> bool:
        if self._extension:
            return extension == self._extension
        return f".{extension.rpartition('.')[2]}" in PICTURES

    def _members(self) -> Iterator[tarfile.TarInfo]:
        try:
            yield from self._tar
        except (tarfile.TarError, OSError, EOFError) as error:
            raise BadInput(f"the tar ends in the middle or is broken ({error})") from error

    def read(self, sample: Sample) -> bytes:
        """The bytes of a sample's picture. Raises BadInput when it has none or they end too early."""
        if sample.picture is None:
            wanted = f"the extension {self._extension}" if self._extension else "a picture's extension"
            raise BadInput(f"the sample has no file with {wanted}")
        try:
            with self._tar.extractfile(sample.picture) as file:
                return file.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise BadInput(f"the tar ends in the middle of it ({error})") from error
