"""Weights stored in eight bits, in ComfyUI's own format.

A quantised layer has, beside its weight, `<module>.weight_scale` (float32: weight = stored * scale) and
`<module>.comfy_quant`, the JSON `{"format": ...}` as bytes. Older files say the same in their metadata, or by a tensor
`scaled_fp8` and `<module>.scale_weight`. A plain cast to fp8 has no scale: it is read as one with scale 1.
(ComfyUI's QUANTIZATION.md.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .strict_json import parse_json
from .tensorfile import fresh, meta

#: ComfyUI's name of a format -> how its weights are stored, and the largest stored number that is used.
FORMATS = {
    "float8_e4m3fn": (torch.float8_e4m3fn, 448.0),
    "float8_e5m2": (torch.float8_e5m2, 57344.0),
    "int8_tensorwise": (torch.int8, 127.0),
}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_MARKER = "comfy_quant"
_OLD_MARKER = "scaled_fp8"
_OLD_NAMES = {"weight_scale": "scale_weight", "input_scale": "scale_input"}
_EXTRA = ("weight_scale", "input_scale", "weight_scale_2", "pre_quant_scale", _MARKER, *_OLD_NAMES.values())
#: Ends of the names of tensors that belong to a quantised weight.
SIDE_TENSORS = tuple(f".{extra}" for extra in _EXTRA)
_BLOCK_WEIGHT = re.compile(r"(double|single)_blocks\.\d+\.(?!.*norm).+\.weight")


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight (out, in) as stored: data in the format's dtype, weight = data * scale.

    scale: float32, () for the whole tensor, or (out, 1) for each row (int8). input_scale: () or None, a measured scale
    for the layer's input.
    """

    data: Tensor
    scale: Tensor
    format: str
    input_scale: Tensor | None = None

    def dequantize(self) -> Tensor:
        """(out, in) float32."""
        return self.data.float() * self.scale

    def parts(self, full_precision: bool = False) -> dict[str, Tensor]:
        """Tensors by the last part of their names, as ComfyUI loads them.

        full_precision: have ComfyUI multiply in the input's dtype instead of eight bits.
        """
        found = {"weight": self.data, "weight_scale": self.scale, _MARKER: marker(self.format, full_precision)}
        return found if self.input_scale is None else found | {"input_scale": self.input_scale}


@dataclass(frozen=True)
class StoredAs:
    """How a layer's weight lies in its file.

    scaled: with a scale, else a plain cast. per_row: one scale for each row. intact: nothing was merged into it since.
    """

    format: str
    scaled: bool
    per_row: bool = False
    input_scale: bool = False
    intact: bool = True


def marker(format_: str, full_precision: bool = False) -> Tensor:
    """ComfyUI's note on a quantised layer, JSON as uint8."""
    note: dict[str, object] = {"format": format_}
    if full_precision:
        note["full_precision_matrix_mult"] = True
    return torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)


def rows_at_a_time(weight: Tensor) -> int:
    """How many rows of a weight (out, in) to work on in float32 at once: 4 MB of them, at least one."""
    return max(1, 2**20 // max(1, weight.shape[1]))


def quantize(weight: Tensor, format_: str) -> QuantizedWeight:
    """Quantise a weight (out, in) with the scale that uses the whole range: of the tensor (fp8) or of each row (int8).

    Values are rounded to nearest. Raises ValueError for an unknown format or a weight that is not finite.
    """
    if format_ not in FORMATS:
        raise ValueError(f"quantisation: unknown format {format_!r}; expected one of {list(FORMATS)}")
    dtype, largest = FORMATS[format_]
    # Some rows at a time: float32 copies of the largest layer would need a quarter of a gigabyte each.
    size = rows_at_a_time(weight)
    scale = torch.cat([rows.float().abs().amax(dim=1, keepdim=True) for rows in weight.split(size)])
    if dtype != torch.int8:
        scale = scale.amax()
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("quantisation: the weight holds numbers that are not finite; the file is damaged, download it again")
    # A weight of zeros only must not be divided by zero.
    scale = torch.where(scale > 0, scale / largest, torch.ones_like(scale))
    data = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scales = scale.split(size) if scale.ndim else [scale] * -(-weight.shape[0] // size)
    for made, rows, divisor in zip(data.split(size), weight.split(size), scales, strict=True):
        scaled = (rows.float() / divisor).clamp_(-largest, largest)
        made.copy_(scaled.round_() if dtype == torch.int8 else scaled)
    return QuantizedWeight(data, scale, format_)


def is_block_weight(name: str) -> bool:
    """Whether this is the weight of a Linear inside a block: those are quantised, the few others stay as they are."""
    return _BLOCK_WEIGHT.fullmatch(name) is not None


class Dequantized(Mapping[str, Tensor]):
    """A transformer's tensors under their plain names, whatever they are stored in.

    Quantised weights are read as float32, scales and markers are hidden; `quantized` gives a weight as stored. A file
    that holds nothing quantised is passed through. metadata: the file's. Raises ValueError for a format that is not in
    `FORMATS`, and for a quantised weight without its scale.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, what: str = "transformer"):
        self._tensors = tensors
        self.fresh = fresh(tensors)
        self._what = what
        self._formats = _formats(tensors, metadata or {}, what)
        hidden = {_OLD_MARKER} | {f"{module}.{extra}" for module in self._formats for extra in _EXTRA}
        self._names = {name: None for name in tensors if name not in hidden}
        for module in self._formats:
            if self._extra_name(module, "weight_scale") is None:
                raise ValueError(f"{what}: '{module}' is marked as quantised and has no scale; the file is incomplete, "
                                 "download it again")

    def _extra_name(self, module: str, extra: str) -> str | None:
        candidates = (f"{module}.{extra}", f"{module}.{_OLD_NAMES.get(extra, extra)}")
        return next((name for name in candidates if name in self._tensors), None)

    def stored_as(self, module: str) -> StoredAs | None:
        """How a layer's weight is stored, None when it is not quantised. Reads no tensor."""
        name = f"{module}.weight"
        if module in self._formats:
            per_row = meta(self._tensors, self._extra_name(module, "weight_scale")).numel() > 1
            return StoredAs(self._formats[module], True, per_row, self._extra_name(module, "input_scale") is not None)
        dtype = meta(self._tensors, name).dtype if name in self._names else None
        return next((StoredAs(f, False) for f, (stored, _) in FORMATS.items() if stored == dtype and dtype in FP8), None)

    def quantized(self, module: str) -> QuantizedWeight | None:
        """A layer's weight as stored, None when it is not quantised."""
        stored = self.stored_as(module)
        if stored is None:
            return None
        format_ = stored.format
        data, scale = self._tensors[f"{module}.weight"], torch.ones(())
        if module not in self._formats:
            return QuantizedWeight(data, scale, format_)
        scale = self._tensors[self._extra_name(module, "weight_scale")].float()
        if scale.numel() not in (1, data.shape[0]):
            raise ValueError(f"{self._what}: the scale of '{module}' has shape {tuple(scale.shape)}; expected one number, or one "
                             f"for each of {data.shape[0]} rows. Choose a bf16 file of the model")
        name = self._extra_name(module, "input_scale")
        input_scale = None if name is None else self._tensors[name].float()
        if input_scale is not None and input_scale.numel() != 1:
            raise ValueError(f"{self._what}: the input scale of '{module}' has shape {tuple(input_scale.shape)}; expected one number. "
                             "Choose a bf16 file of the model")
        input_scale = None if input_scale is None else input_scale.reshape(())
        dtype = FORMATS[format_][0]
        # Some writers store fp8 as bytes.
        data = data.view(dtype) if data.dtype == torch.uint8 else data
        if data.dtype != dtype:
            raise ValueError(f"{self._what}: '{module}.weight' is {data.dtype}, its marker says {format_}; the file is damaged, "
                             "download it again")
        return QuantizedWeight(data, scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1), format_, input_scale)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._names:
            raise KeyError(key)
        module, _, kind = key.rpartition(".")
        if kind == "weight" and module in self._formats:
            return self.quantized(module).dequantize()
        tensor = self._tensors[key]
        # torch cannot calculate in fp8.
        return tensor.float() if tensor.dtype in FP8 else tensor

    def meta(self, key: str) -> Tensor:
        """Shape and stored dtype, on the meta device."""
        return meta(self._tensors, key)

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stored_as(tensors: Mapping[str, Tensor], module: str) -> StoredAs | None:
    """How a layer's weight is stored, for any mapping: those that cannot tell hold nothing quantised."""
    return tensors.stored_as(module) if hasattr(tensors, "stored_as") else None


def _formats(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> dict[str, str]:
    """Module -> format of every layer that a file says is quantised, in any of the three ways of saying so."""
    notes: dict[str, object] = {}
    if "_quantization_metadata" in metadata:
        try:
            notes |= parse_json(metadata["_quantization_metadata"])["layers"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{what}: its quantisation metadata cannot be read ({error!r}); choose a bf16 file of the model") from error
    for name in tensors:
        module, _, kind = name.rpartition(".")
        if kind == _MARKER:
            try:
                notes[module] = parse_json(bytes(tensors[name].to("cpu", torch.uint8).flatten().tolist()))
            except ValueError as error:
                raise ValueError(f"{what}: '{name}' cannot be read ({error}); the file is damaged, download it again") from error
        elif kind == _OLD_NAMES["weight_scale"] and _OLD_MARKER in tensors:
            notes[module] = {"format": "float8_e4m3fn"}
    found: dict[str, str] = {}
    for module, note in notes.items():
        format_ = note.get("format") if isinstance(note, dict) else None
        if not isinstance(format_, str) or format_ not in FORMATS or "convrot" in json.dumps(note):
            raise ValueError(f"{what}: '{module}' is quantised as {note}; expected one of the formats {list(FORMATS)}. Choose a bf16, "
                             "fp16 or fp8 file of the model")
        if f"{module}.weight" in tensors:
            found[module] = format_
    return found
