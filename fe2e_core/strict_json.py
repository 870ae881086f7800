"""JSON from files and text boxes: whatever is wrong with it is a ValueError."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for anything else, brackets nested thousands deep among it."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error


def build_flat(kind: type[T], table: Any, what: str) -> T:
    """A JSON object as a dataclass of numbers and bools, which has to name every field and no other.

    Raises ValueError naming `what` and the field. Numbers have to be finite.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(table, Mapping) or set(table) != set(names):
        found = sorted(table) if isinstance(table, Mapping) else type(table).__name__
        raise ValueError(f"{what}: found {found}, expected {names}")
    values = {}
    for name, value in table.items():
        if isinstance(value, bool) != (hints[name] is bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{what}: '{name}' is {value!r}, expected a {hints[name].__name__} that is finite")
        values[name] = hints[name](value)
    return kind(**values)
