"""Reading annotation files so that a wrong one is refused with the place where it is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from primelens.errors import InputError

__all__ = ["field", "image_path", "json_lines", "lines", "load_json", "strings"]

T = TypeVar("T")


def load_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}.") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank; read lazily.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from error


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and object of every line of a JSON-lines file."""
    for number, line in lines(path):
        try:
            yield f"{path}, line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is no JSON: {error}.") from error


def field(data: Any, name: str, kind: type[T], where: str) -> T:
    """``data[name]``, of the type it must have.

    Raises:
        InputError: ``data`` is no object, has no such key, or something else stands there.
    """
    if not isinstance(data, dict) or name not in data:
        raise InputError(f"{where} has no {name!r}.")
    value = data[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: {name!r} is {value!r:.60}, not of type {kind.__name__}.")
    return value


def strings(value: Any, where: str) -> tuple[str, ...]:
    """A text, or a list of texts, as a tuple.

    Raises:
        InputError: it is something else.
    """
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InputError(f"{where}: {value!r:.60} is neither a text nor a list of texts.")
    return tuple(items)


def image_path(folder: Path, name: str, where: str) -> Path:
    """The file that an annotation names.

    Raises:
        InputError: the name leads out of the folder: an annotation file may come from a stranger,
            and what it names is opened.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name or ":" in parts[0]:
        raise InputError(f"{where} names {name!r}, which does not lie in {folder}.")
    return folder.joinpath(*parts)
