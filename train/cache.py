"""Latents and labels on disk, so that a picture is read, labelled and encoded once.

A file's name is a digest of all it depends on: the autoencoder's weights, the picture's files (place, size, time of
change) or its number, the dataset's settings, mirrored or not, the label scheme, and the source of the readers
themselves, so that a repaired reader is not hidden by what it once made. So nothing is ever out of date, and
runs may share a folder. The picture's and the normals' latents do not depend on the scheme and are stored
apart: the runs of a comparison differ in the depth's alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fe2e_core import geometry, percentiles, quantization
from fe2e_core.tensorfile import TensorFile, write_tensors
from train import labels, layouts, primitives, scenes, textures
from train.data import frame
from train.data.mixture import Draw, Mixture
from train.labels import EncodedPicture
from train.lora_export import tensors_digest

log = logging.getLogger(__name__)

_FORMAT = 1
_DEPTH, _MASKS = "depth", ("depth_mask", "normal_mask")
_SCENE = ("image", "normal", *_MASKS)
#: Modules beside the readers that never change what is read.
_OTHERS = ("__init__", "fixed_set", "loader", "mixture", "settings", "sheet")


@dataclass(frozen=True)
class CacheConfig:
    """folder: where latents are kept, for as many runs as like; empty for no cache."""

    folder: str = ""


@cache
def source_digest() -> str:
    """SHA-256 of the source that makes labels of files."""
    modules = (geometry, percentiles, quantization, labels, layouts, primitives, scenes, textures)
    readers = [p for p in Path(frame.__file__).parent.glob("*.py") if p.stem not in _OTHERS]
    digest = hashlib.sha256()
    for path in sorted([*(Path(module.__file__) for module in modules), *readers]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class LatentCache:
    """The latents of a mixture's pictures in a folder. `find` runs in the worker processes, `keep` in the main
    one.

    autoencoder: the digest of its weights. scheme: of the depth labels."""

    def __init__(self, folder: str | os.PathLike[str], mixture: Mixture, autoencoder: str, scheme: str):
        self._folder = Path(folder)
        self._mixture = mixture
        self._scheme = scheme
        self._common = [_FORMAT, source_digest(), autoencoder]
        self._fingerprints = [source.fingerprint() for source in mixture.sources]
        self._full = False

    def find(self, draw: Draw) -> EncodedPicture | None:
        """The picture as it was kept; None when it was not, when its files changed, or when what was kept is
        broken (it is then made again)."""
        try:
            scene_file, depth_file = self._paths(draw)
        except OSError:  # reading the picture says better what is wrong
            return None
        scene, depth = _read(scene_file, _SCENE), _read(depth_file, (_DEPTH,))
        if scene is None or depth is None:
            return None
        tensors = scene[0] | depth[0]
        tensors |= {key: tensors[key].float() for key in _MASKS}
        return EncodedPicture(**tensors, name=f"{self._mixture.sources[draw.source].name}/{scene[1]}")

    def keep(self, draw: Draw, picture: EncodedPicture) -> None:
        """Write a picture's latents. A full disk is logged and survived: nothing more is written then."""
        if self._full or not all(
            bool(torch.isfinite(getattr(picture, key)).all()) for key in ("image", "normal", _DEPTH)
        ):
            return
        tensors = {key: getattr(picture, key).cpu() for key in ("image", "normal", _DEPTH)}
        tensors |= {key: getattr(picture, key).to(torch.uint8).cpu() for key in _MASKS}
        try:
            for path, keys in zip(self._paths(draw), (_SCENE, (_DEPTH,)), strict=True):
                part = {key: tensors[key] for key in keys}
                path.parent.mkdir(parents=True, exist_ok=True)
                name = picture.name.partition("/")[2]
                write_tensors(path, part, {"name": name, "digest": tensors_digest(part)})
        except OSError as error:
            self._full = True
            log.error("latent cache: nothing more is kept (%s); the run goes on", error)

    def size(self) -> int:
        """Bytes that all pictures of the datasets that have an end take, mirrored ones included."""
        ways = 1 if self._mixture.mirror in (0, 1) else 2
        latent = 3 * 16 * 4 + len(_MASKS)
        return sum(
            ways * (source.length or 0) * (source.size[0] // 8) * (source.size[1] // 8) * latent
            for source in self._mixture.sources
        )

    def _paths(self, draw: Draw) -> tuple[Path, Path]:
        """The file of picture, normals and masks, and that of the depth. Raises OSError for missing files."""
        source = self._mixture.sources[draw.source]
        files = []
        for name in source.files(draw.index):
            about = os.stat(name)
            files.append([os.path.abspath(name), about.st_size, about.st_mtime_ns])
        picture = [*self._common, self._fingerprints[draw.source], list(source.size), draw.mirrored]
        picture.append(files or draw.index)
        digests = [
            hashlib.sha256(json.dumps([*picture, *part]).encode()).hexdigest()
            for part in (["scene"], ["depth", self._scheme])
        ]
        scene, depth = (self._folder / d[:2] / f"{d[2:]}.safetensors" for d in digests)
        return scene, depth


def _read(path: Path, keys: tuple[str, ...]) -> tuple[dict[str, Tensor], str] | None:
    """(tensors, picture's name) of a cache file; None when it is not there, or broken."""
    if not path.is_file():
        return None
    try:
        with TensorFile(path, "latent cache") as file:
            tensors = {key: file[key] for key in keys}
            if tensors_digest(tensors) == file.metadata.get("digest"):
                return tensors, file.metadata.get("name", "")
        problem = "its contents do not fit its digest"
    except (ValueError, KeyError, OSError) as error:
        problem = str(error)
    log.warning("latent cache: '%s' is broken (%s); it is made again", path, problem)
    return None
