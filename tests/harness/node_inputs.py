"""Hypothesis strategies for every input of every node, read from the node's own schema.

Two kinds. `tame` values are those that the interface lets a user type and wires that keep their contract: a node must
answer. `wild` ones also come over wires, which ComfyUI does not check: NaN, infinities, numbers beyond the limits,
pictures of odd shapes. There a node may refuse, but only by an exception that names the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

#: Keys of a geometry that are not always there.
OPTIONAL = ("log_range", "depth", "intrinsics", "confidence")
ODD_NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-30, -1e30, 1e30)
ODD_INTEGERS = (0, -1, -(2**31), 2**31, 2**62)
TEXTS = ("", " ", "0.5 0.5 2\n0.2 0.3 1", "1 2", "nan nan nan", "a\0b", "../x", "#ff8000", "#zz0000", "white", "größe 深度", "{}", "[" * 5000,
         "9" * 5000, "0.5 0.5 1e400\n0.1 0.1 2", '{"format": 1}')  # fmt: skip


@dataclass(frozen=True)
class Wires:
    """What the strategies cannot draw: real objects, by the type name of the input. without: choices that take minutes."""

    objects: dict[str, Any]
    without: frozenset[str] = frozenset()


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def sizes(draw, largest: int = 24) -> tuple[int, int, int]:
    """(B, H, W), often of one pixel or one row."""
    side = st.sampled_from((1, 2, 3, 5, 8, 16)) | st.integers(1, largest)
    return draw(st.integers(1, 2)), draw(side), draw(side)


@st.composite
def geometries(draw, size: tuple[int, int, int]) -> dict[str, Any]:
    """FE2E_GEOMETRY that keeps its contract: flat, random or cut-off labels, any mask, any of the optional keys."""
    b, h, w = size
    generator = _random(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(("random", "ramp", "flat", "cut off")))
    label = torch.rand(b, h, w, generator=generator) * 2 - 1
    if kind == "ramp":
        label = torch.linspace(-0.9, 0.9, w).expand(b, h, w).clone()
    elif kind == "flat":
        label = torch.full((b, h, w), draw(st.sampled_from((-1.0, 0.0, 0.3, 1.0))))
    elif kind == "cut off":
        label = (3 * label).clamp(-1, 1)
    normal = torch.nn.functional.normalize(torch.randn(b, h, w, 3, generator=generator), dim=-1)
    if draw(st.booleans()):
        normal = torch.tensor([0.0, 0.0, -1.0]).expand(b, h, w, 3).clone()
    share = draw(st.sampled_from((0.0, 0.5, 1.0)))
    geometry = {"log_depth": label, "normal": normal, "mask": torch.rand(b, h, w, generator=generator) < share,
                "image": torch.rand(b, h, w, 3, generator=generator)}  # fmt: skip
    keys = draw(st.sets(st.sampled_from(OPTIONAL)))
    if "log_range" in keys or "depth" in keys:
        span = draw(st.sampled_from((1e-3, 1.5, 8.0)))
        geometry |= {"log_range": torch.full((b,), span), "log_near": torch.full((b,), 0.2), "metric": draw(st.booleans())}
        if "depth" in keys:
            geometry["depth"] = torch.exp(span * (label + 1) / 2 + 0.2)
    if "intrinsics" in keys:
        focal = draw(st.sampled_from((0.05, 0.9, 50.0)))
        geometry["intrinsics"] = torch.tensor([[focal, 0, 0.5], [0, focal * w / h, 0.5], [0, 0, 1]]).expand(b, 3, 3).clone()
    if "confidence" in keys:
        geometry["confidence"] = torch.rand(b, h, w, generator=generator)
    return geometry


@st.composite
def pictures(draw, size: tuple[int, int, int], wild: bool) -> torch.Tensor:
    """IMAGE (B,H,W,3) in [0,1]; a wild one has other sizes, channels, ranges or numbers that are none."""
    image = torch.rand(*size, 3, generator=_random(draw(st.integers(0, 2**16))))
    if wild:
        kind = draw(st.sampled_from(("size", "channels", "range", "nan", "empty", "flat", "half")))
        if kind == "size":
            image = torch.rand(*draw(sizes()), 3)
        elif kind == "channels":
            image = torch.rand(*size, draw(st.sampled_from((1, 2, 4, 5))))
        elif kind == "range":
            image = image * 20 - 10
        elif kind == "nan":
            image.view(-1)[draw(st.integers(0, image.numel() - 1))] = draw(st.sampled_from((math.nan, math.inf)))
        elif kind == "empty":
            image = image[:0]
        elif kind == "flat":
            image = image[0]
        else:
            image = image.half()
    return image


@st.composite
def masks(draw, size: tuple[int, int, int], wild: bool) -> torch.Tensor:
    """MASK of the size, one for all pictures or one each."""
    if wild:
        size = draw(sizes())
    one = draw(st.booleans())
    mask = torch.rand(1 if one else size[0], *size[1:], generator=_random(draw(st.integers(0, 2**16))))
    kind = draw(st.sampled_from(("grey", "all", "none", "nan" if wild else "all")))
    return {"grey": mask, "all": torch.ones_like(mask), "none": torch.zeros_like(mask), "nan": mask * math.nan}[kind]


def _value(field: Any, size: tuple[int, int, int], wild: bool, wires: Wires) -> st.SearchStrategy[Any]:
    kind = field.get_io_type()
    if kind == "FLOAT":
        tame = st.sampled_from((field.min, field.max)) | st.floats(field.min, field.max)
        return tame | st.sampled_from(ODD_NUMBERS) if wild else tame
    if kind == "INT":
        # what a user types may be large, but a test should not draw pictures of 4096 pixels all the time
        tame = st.integers(field.min, min(field.max, field.min + 100))
        return tame | st.sampled_from(ODD_INTEGERS) if wild else tame
    if kind == "BOOLEAN":
        return st.booleans()
    if kind == "COMBO":
        return st.sampled_from(list(field.options)) | st.just("no such choice") if wild else st.sampled_from(list(field.options))
    if kind == "STRING":
        return st.sampled_from(TEXTS) | st.text(max_size=30) if wild else st.just(field.default)
    if kind == "IMAGE":
        return pictures(size, wild)
    if kind == "MASK":
        return masks(size, wild)
    if kind == "FE2E_GEOMETRY":
        return geometries(size)
    if kind in wires.objects:
        return st.just(wires.objects[kind])
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return st.sampled_from([o for o in field.options if o.key not in wires.without]).flatmap(
            lambda option: st.fixed_dictionaries({field.id: st.just(option.key)} | {
                inner.id: _value(inner, size, wild, wires) for inner in option.inputs}))  # fmt: skip
    if kind == "MOGE_GEOMETRY":
        return st.just({"depth": torch.rand(size) + 0.5, "mask": torch.rand(size) > 0.3})
    if kind == "DA3_GEOMETRY":
        return st.just({"depth": torch.rand(size) + 0.5, "sky": torch.rand(size)})
    if kind == "LOAD3D_CAMERA":
        return st.sampled_from(({"fov": 40.0}, {}, {"fov": math.nan}, {"fov": 500}) if wild else ({"fov": 40.0},))
    raise TypeError(f"{field.id}: no strategy for {kind}; add one here")


@st.composite
def inputs(draw, node: type, wild: bool, wires: Wires) -> dict[str, Any]:
    """Arguments for one execution of a node; of optional ones any may be left out."""
    size = draw(sizes())
    found = {}
    for field in node.GET_SCHEMA().inputs:
        if field.optional and draw(st.booleans()):
            continue
        found[field.id] = draw(_value(field, size, wild, wires))
    return found
