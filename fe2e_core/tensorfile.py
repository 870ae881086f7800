"""safetensors files, read one tensor at a time and written atomically.

Reading goes through the safetensors library, which refuses a header that lies about sizes. Nothing here ever
unpickles: a `.ckpt` or `.pt` is refused by name.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .files import Unfinished, failures_named

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
#: Space left on the disk beside the file itself, so that a save never fills it.
_SPARE_BYTES = 64 * 2**20


class TensorFile(Mapping[str, Tensor]):
    """A safetensors file as a mapping from name to tensor; a tensor is read when it is asked for, and not kept.

    what: what the file is to the user ("transformer", "LoRA", ...), for error messages. Raises FileNotFoundError
    when there is no such file and ValueError when it is not a whole safetensors file. Use as a context manager.
    """

    fresh = True

    def __init__(self, path: str | os.PathLike, what: str = "file"):
        self.path = Path(path)
        self.what = what
        if not self.path.is_file():
            raise FileNotFoundError(f"{what}: there is no file '{self.path}'; check the name and the model folder")
        size = self.path.stat().st_size
        try:
            # The library checks that the header tells the truth about the file, but maps the file into memory: pages
            # that were read count as ours until it is closed. Reading the tensors ourselves keeps one at a time.
            with safe_open(str(self.path), framework="pt", device="cpu") as checked:
                names = list(checked.keys())
                self.metadata: dict[str, str] = checked.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{what}: '{self.path.name}' ({size} bytes) is not a whole safetensors file "
                             f"({error}); download it again, or convert it if it is a pickled .pt/.ckpt") from error
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__ or the garbage collector
        length = struct.unpack("<Q", self._file.read(8))[0]
        header = json.loads(self._file.read(length))
        self._start = 8 + length
        self._entries = {name: header[name] for name in names}

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __getitem__(self, key: str) -> Tensor:
        entry = self._entries[key]
        first, last = entry["data_offsets"]
        raw = torch.empty(last - first, dtype=torch.uint8)
        view, done = memoryview(raw.numpy()), 0
        self._file.seek(self._start + first)
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise ValueError(f"{self.what}: '{self.path.name}' ends in the middle of '{key}'; it was changed while it was read")
            done += count
        return raw.view(self._dtype(key)).reshape(entry["shape"])

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _dtype(self, key: str) -> torch.dtype:
        name = self._entries[key]["dtype"]
        if name not in _DTYPES:
            raise ValueError(f"{self.what}: '{key}' in '{self.path.name}' is stored as {name}; expected one of "
                             f"{sorted(_DTYPES)}. Choose a bf16, fp16 or fp8 file of the model")
        return _DTYPES[name]

    def meta(self, key: str) -> Tensor:
        """The tensor without its data (on the meta device), from the header only."""
        return torch.empty(self._entries[key]["shape"], dtype=self._dtype(key), device="meta")


class Prefixed(Mapping[str, Tensor]):
    """The part of a mapping whose names start with a prefix, under their names without it."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str):
        self._tensors = tensors
        self.fresh = fresh(tensors)
        self._prefix = prefix
        self._names = [key[len(prefix):] for key in tensors if key.startswith(prefix)]
        self._known = set(self._names)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._known:
            raise KeyError(key)
        return self._tensors[self._prefix + key]

    def meta(self, key: str) -> Tensor:
        return meta(self._tensors, self._prefix + key)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Joined(Mapping[str, Tensor]):
    """Several mappings as one: prefix -> (tensors, names of those that count)."""

    def __init__(self, parts: Mapping[str, tuple[Mapping[str, Tensor], Sequence[str]]]):
        self._places = {prefix + name: (tensors, name) for prefix, (tensors, names) in parts.items() for name in names}

    def __getitem__(self, key: str) -> Tensor:
        tensors, name = self._places[key]
        return tensors[name]

    def meta(self, key: str) -> Tensor:
        return meta(*self._places[key])

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def meta(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """Shape and dtype of a tensor as a tensor on the meta device; nothing is read from disk if that can be helped."""
    if hasattr(tensors, "meta"):
        return tensors.meta(key)
    tensor = tensors[key]
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def fresh(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every tensor this mapping gives is a new one, which the caller may write into."""
    return bool(getattr(tensors, "fresh", False))


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                  on_step: Callable[[int, int], None] | None = None) -> None:
    """Write a safetensors file: the whole file under its final name, or nothing.

    Tensors are fetched and written one at a time (the library's own writer wants all of them in memory at once
    and reports no progress); their sizes are asked for before, by `meta`. on_step(bytes done, bytes in all) is
    called after each and may raise to stop. Raises OSError when the disk has not enough room, before anything is
    written.
    """
    path = Path(path)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in tensors:
        expected = meta(tensors, name)
        size = expected.numel() * expected.element_size()
        header[name] = {"dtype": _DTYPE_NAMES[expected.dtype], "shape": list(expected.shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    free = shutil.disk_usage(path.parent).free
    if free < offset + _SPARE_BYTES:
        raise OSError(f"'{path}' needs {offset / 2**30:.2f} GiB and the disk has {free / 2**30:.2f} GiB left; free some room")
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)

    with failures_named(path), Unfinished(path) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        done = 0
        for name in tensors:
            # `to` and not `cpu`: ComfyUI's lazy parameters apply their patches when asked `to` somewhere.
            flat = tensors[name].to("cpu").detach().contiguous().reshape(-1)
            size = flat.numel() * flat.element_size()
            first, last = header[name]["data_offsets"]
            if size != last - first or _DTYPE_NAMES[flat.dtype] != header[name]["dtype"]:
                raise RuntimeError(f"'{name}' came out as {flat.dtype} of {size} bytes, announced were {header[name]}")
            if size:
                file.write(memoryview(flat.view(torch.uint8).numpy()))
            done += size
            if on_step is not None:
                on_step(done, offset)
