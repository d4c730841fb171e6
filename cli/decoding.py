"""``--set NAME=VALUE``: every decoding option of `primelens.DecodingOptions`, by its own name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from primelens.decoding.options import DecodingOptions

__all__ = ["decoding_options"]


def decoding_options(settings: Iterable[str], beams: int | None) -> DecodingOptions:
    """The options that ``NAME=VALUE`` texts and ``--beams`` ask for.

    A value is JSON (``4``, ``0.7``, ``true``, ``["yes", "no"]``) or, where it is none, the text
    itself.

    Raises:
        click.UsageError: a name is unknown or given twice, or a value is refused.
    """
    from primelens.decoding.options import DecodingOptions
    from primelens.errors import OptionError

    known = DecodingOptions.__dataclass_fields__
    given: dict[str, Any] = {} if beams is None else {"num_beams": beams}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: write NAME=VALUE.")
        if name not in known:
            raise click.UsageError(f"--set {setting}: {_unknown(name, known)}")
        if name in given:
            raise click.UsageError(f"--set {setting}: {name} is given twice.")
        given[name] = _value(value)
    try:
        return DecodingOptions(**given)
    except OptionError as error:
        raise click.UsageError(str(error)) from error


def _unknown(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"there is no such option; did you mean {' or '.join(near)}?"
    return f"there is no such option; there are {', '.join(sorted(known))}."


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
