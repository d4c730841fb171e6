"""Frozen dataclasses from JSON and back, strictly.

Everything that a bundle stores as JSON is declared as a frozen dataclass. `decode` turns parsed
JSON into it and reports *every* problem at once: unknown keys, missing keys, wrong types,
non-finite numbers. There is
no coercion: ``1`` is not a string, ``true`` is not an integer; only an integer is accepted where a
    float
is wanted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

__all__ = ["canonical_json", "decode", "encode"]

T = TypeVar("T")

JSON = Any  # what json.loads returns; narrowed by decode


def canonical_json(data: JSON) -> bytes:
    """The one byte string that stands for ``data`` in a digest.

    UTF-8, keys sorted by code point, no white space, non-ASCII kept as it is, floats as Python's
    shortest round-trip representation, no NaN or infinity (`ValueError`).
    """
    text = json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def encode(value: Any) -> JSON:
    """A dataclass (or mapping, sequence, scalar) as plain JSON data; tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], data: JSON, *, where: str, problems: list[str]) -> T | None:
    """Build the dataclass ``cls`` from ``data``.

    Args:
        cls: a frozen dataclass whose annotations are made of str, int, float, bool, None, Literal,
            unions with None, ``tuple[X, ...]``, ``Mapping[str, X]``, ``Any``, further such
            dataclasses, and unions of dataclasses that a Literal field ``kind`` tells apart.
        data: what ``json.loads`` returned.
        where: the place of ``data`` in its file, for messages (``heads.caption``).
        problems: each finding is appended here; the result is None if any was added.
    """
    before = len(problems)
    if not isinstance(data, dict):
        problems.append(f"{where}: expected an object, found {_name(data)}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            problems.append(f"{where}.{key}: unknown key")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}.{name}", problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}.{name}: missing")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # __post_init__ found values that do not fit together
        problems.append(f"{where}: {error}")
        return None


def _value(hint: Any, data: JSON, where: str, problems: list[str]) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return data
    if origin in (Union, types.UnionType):
        return _union(hint, data, where, problems)
    if origin is Literal:
        options = typing.get_args(hint)
        if data not in options or isinstance(data, bool):
            problems.append(f"{where}: expected one of {list(options)}, found {data!r}")
        return data
    if origin is tuple:
        return _tuple(typing.get_args(hint)[0], data, where, problems)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(typing.get_args(hint)[1], data, where, problems)
    if dataclasses.is_dataclass(hint):
        return decode(hint, data, where=where, problems=problems)  # type: ignore[arg-type]
    return _scalar(hint, data, where, problems)


def _union(hint: Any, data: JSON, where: str, problems: list[str]) -> Any:
    members = [member for member in typing.get_args(hint) if member is not types.NoneType]
    if data is None and len(members) < len(typing.get_args(hint)):
        return None
    return _value(_member(members, data), data, where, problems)


def _member(members: list[Any], data: JSON) -> Any:
    """Of several dataclasses the one whose ``kind`` the data names; else the first."""
    if isinstance(data, dict):
        for member in members:
            if dataclasses.is_dataclass(member):
                kind = typing.get_type_hints(member).get("kind")
                if data.get("kind") in typing.get_args(kind):
                    return member
    return members[0]


def _tuple(item: Any, data: JSON, where: str, problems: list[str]) -> Any:
    if not isinstance(data, list):
        problems.append(f"{where}: expected a list, found {_name(data)}")
        return ()
    return tuple(_value(item, value, f"{where}[{i}]", problems) for i, value in enumerate(data))


def _mapping(item: Any, data: JSON, where: str, problems: list[str]) -> Any:
    if not isinstance(data, dict):
        problems.append(f"{where}: expected an object, found {_name(data)}")
        return {}
    return {key: _value(item, value, f"{where}.{key}", problems) for key, value in data.items()}


def _scalar(hint: Any, data: JSON, where: str, problems: list[str]) -> Any:
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        try:
            number = float(data)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            problems.append(f"{where}: {_name(data)} is not a finite number")
        return number
    if type(data) is not hint:
        problems.append(f"{where}: expected {hint.__name__}, found {_name(data)}")
    return data


def _name(data: JSON) -> str:
    if data is None:
        return "null"
    text = repr(data)
    return f"{type(data).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
