"""TOML tables -> frozen dataclasses, every key and type checked."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file's tables. Raises FileNotFoundError, or ValueError naming the file when it is no TOML."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file '{path}'")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, a number too long, brackets too deep
        raise ValueError(f"{path}: {error}; expected a TOML file in UTF-8") from error


def build_config(raw: Mapping[str, Any], kind: type[T], where: str) -> T:
    """A table as the frozen dataclass `kind`: nested tables are dataclasses, lists are tuples.

    where: file and table, for messages. Raises ValueError naming the key that is unknown, missing or of
    another type, or what the dataclass itself objects to."""
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            raise ValueError(f"{where}: unknown key '{key}'; expected one of {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise ValueError(f"{where}: '{name}' is missing")
    values = {key: _value(value, hints[key], f"{where}: '{key}'") for key, value in raw.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(value: Any, hint: Any, what: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{what} is {_shown(value)}; expected a table")
        return build_config(value, hint, what)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{what} is {_shown(value)}; expected a list")
        inner = get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_value(v, inner[0], f"{what}[{i}]") for i, v in enumerate(value))
        if len(inner) != len(value):
            raise ValueError(f"{what} has {len(value)} values; expected {len(inner)}")
        return tuple(_value(v, h, f"{what}[{i}]") for i, (v, h) in enumerate(zip(value, inner, strict=True)))
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{what} is {_shown(value)}; expected true or false")
        return value
    allowed = (int, float) if hint is float else hint
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{what} is {_shown(value)}; expected {hint.__name__}")
    # a comparison, because a whole number may be too large to be made a float; nothing is below it if it is nan
    if not isinstance(value, str) and not abs(value) < 2**63:
        raise ValueError(f"{what} is {_shown(value)}; expected a number that is finite and below 2^63")
    return hint(value)


def _shown(value: Any) -> str:
    """A value for a message. Python refuses to write a whole number of thousands of digits, which 0x... can give."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits, or has one in it"
