"""A transformer as it is to be stored or run: folded, cast or quantised, one tensor at a time.

Loading and packing both go through here, so what is packed is what would have been run. Each tensor is read, merged
with its LoRA (when the source is a `lora.Merged`), folded, cast or quantised when it is asked for, and not kept: the
memory needed is that of the largest tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .folding import CONSTANT, fold_module, is_folded_away, is_modulation
from .quantized import FORMATS, FP8, QuantizedWeight, is_block_weight, marker, quantize, stored_as
from .tensorfile import meta

#: Storage.format: each quantised layer in the format its file has it in.
AS_STORED = "as stored"


@dataclass(frozen=True)
class Storage:
    """How a transformer's tensors are kept.

    dtype: of those that are not quantised, None: as the source has them (bf16 where that is fp8). format: of the Linears
    in the blocks: a name of `quantized.FORMATS`, AS_STORED, or None for none. constants: dtype of the folded constants.
    full_precision: have ComfyUI multiply quantised layers in the input's dtype, not in eight bits.
    """

    dtype: torch.dtype | None = None
    format: str | None = None
    constants: torch.dtype = torch.float32
    full_precision: bool = False

    def __post_init__(self) -> None:
        if self.format not in (None, AS_STORED, *FORMATS):
            raise ValueError(f"storage: unknown format {self.format!r}; expected one of {[AS_STORED, *FORMATS]}")


class Assembled(Mapping[str, Tensor]):
    """Transformer tensors (public FLUX names, of any source) in the given storage, folded when silu_vec is given.

    source: names to float tensors; `Dequantized` and `Merged` also tell how they are stored. silu_vec (1, hidden): in
    the dtype that the modulation layers run in. Names under `connector.` are left out, and in a folded transformer
    those of the guidance input.
    """

    def __init__(self, source: Mapping[str, Tensor], silu_vec: Tensor | None, storage: Storage):
        self._source = source
        self._silu_vec = silu_vec
        self._storage = storage
        self._entries: dict[str, tuple[Tensor, Callable[[], Tensor]]] = {}
        for name in source:
            if not (name.startswith("connector.") or (silu_vec is not None and is_folded_away(name))):
                self._plan(name)

    def _plan(self, name: str) -> None:
        """Decide which tensors `name` becomes: their sizes now, their data when asked for."""
        module, _, kind = name.rpartition(".")
        found = meta(self._source, name)
        constants = self._storage.constants
        if is_modulation(module) and kind == CONSTANT:
            self._add(name, found.shape, constants, lambda: self._source[name].to(constants))
        elif is_modulation(module) and self._silu_vec is not None:
            if kind == "weight":
                self._add(f"{module}.{CONSTANT}", found.shape[:1], constants, lambda: self._constant(module))
        elif (format_ := self._format(name)) is not None:
            self._plan_quantized(module, found, format_)
        else:
            dtype = self._storage.dtype or (torch.bfloat16 if found.dtype in FP8 or not found.is_floating_point() else found.dtype)
            self._add(name, found.shape, dtype, lambda: self._source[name].to(dtype))

    def _plan_quantized(self, module: str, found: Tensor, format_: str) -> None:
        stored = stored_as(self._source, module)
        keep = stored is not None and stored.intact and stored.format == format_
        per_row = stored.per_row if keep else FORMATS[format_][0] == torch.int8
        scales: list[Tensor] = []  # the scale of the weight that was made last, until it is asked for

        def read() -> QuantizedWeight:
            return self._source.quantized(module) if keep else quantize(self._source[f"{module}.weight"], format_)

        def weight() -> Tensor:
            made = read()
            scales[:] = [made.scale]
            return made.data

        self._add(f"{module}.weight", found.shape, FORMATS[format_][0], weight)
        self._add(f"{module}.weight_scale", (found.shape[0], 1) if per_row else (), torch.float32,
                  lambda: scales.pop() if scales else read().scale)
        note = marker(format_, self._storage.full_precision)
        self._add(f"{module}.comfy_quant", note.shape, torch.uint8, lambda: note)
        if keep and stored.input_scale:
            self._add(f"{module}.input_scale", (), torch.float32, lambda: read().input_scale)

    def _add(self, name: str, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor]) -> None:
        self._entries[name] = (torch.empty(shape, dtype=dtype, device="meta"), make)

    def _format(self, name: str) -> str | None:
        """The format that a tensor is to be quantised in, None when it is not."""
        if self._storage.format is None or not is_block_weight(name):
            return None
        if self._storage.format != AS_STORED:
            return self._storage.format
        stored = stored_as(self._source, name.rpartition(".")[0])
        return None if stored is None else stored.format

    def _constant(self, module: str) -> Tensor:
        made = fold_module(self._source[f"{module}.weight"], self._source[f"{module}.bias"], self._silu_vec)
        return made.to("cpu", self._storage.constants)

    def __getitem__(self, key: str) -> Tensor:
        return self._entries[key][1]()

    def meta(self, key: str) -> Tensor:
        return self._entries[key][0]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
