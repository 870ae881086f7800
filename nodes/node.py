"""What every node is: a V3 node that holds what a wire brings to the limits which the interface shows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from comfy_api.latest import io


class Node(io.ComfyNode):
    """ComfyUI checks typed-in values against the schema, but not those that come over a wire: NaN, a picture two billion
    pixels wide, a choice that there is not. Here `execute` is given only values that the schema allows; others raise
    ValueError naming the input.
    """

    #: Whether choices are names of files, which come and go while ComfyUI runs: `execute` says what is not there.
    lists_files: ClassVar[bool] = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        own = cls.__dict__.get("execute")
        # ComfyUI makes a copy of the class for each execution, which has been here before
        if isinstance(own, classmethod) and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = classmethod(_checked(own.__func__))


def _checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    @functools.wraps(execute)
    def checked(cls: type[Node], **inputs: Any) -> io.NodeOutput:
        schema = cls.SCHEMA or cls.GET_SCHEMA()
        check_inputs(schema.inputs, inputs, choices=not cls.lists_files)
        return execute(cls, **inputs)

    return checked


def check_inputs(fields: Iterable[io.Input], values: Mapping[str, Any], choices: bool = True) -> None:
    """Raise ValueError for the first number that is none or beyond its limits, or choice that is not offered.

    choices: whether to look at choices. Inputs that are not there are not looked at.
    """
    for field in fields:
        value, kind = values.get(field.id), field.get_io_type()
        if value is None:
            continue
        if kind in ("FLOAT", "INT"):
            low, high = (math.inf * sign if limit is None else limit for sign, limit in ((-1, field.min), (1, field.max)))
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{field.id}: found {value!r}, expected a number from {low:g} to {high:g}; look at what is connected")
        elif kind == "COMBO" and choices:
            options = field.options or ()
            if value not in options:
                raise ValueError(f"{field.id}: found {value!r}, expected one of {', '.join(map(str, options))}")
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            option = next((o for o in field.options if isinstance(value, Mapping) and o.key == value.get(field.id)), None)
            if option is None:
                found = value.get(field.id) if isinstance(value, Mapping) else value
                raise ValueError(f"{field.id}: found {found!r}, expected one of {', '.join(o.key for o in field.options)}")
            check_inputs(option.inputs, value, choices)
