"""Which prompt goes with which picture, where every picture of a call has its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from primelens.errors import OptionError
from primelens.options import CaptionOptions

__all__ = ["counted", "prompts_of", "with_prompts_at"]

T = TypeVar("T")


def prompts_of(options: CaptionOptions, count: int) -> list[str | None]:
    """The prompts of ``count`` pictures.

    Raises:
        OptionError: there are prompts for fewer pictures, or for more.
    """
    prompt = options.prompt
    if prompt is None or isinstance(prompt, str):
        return [prompt] * count
    if len(prompt) != count:
        raise _not_equally_many(len(prompt), str(count))
    return list(prompt)


def with_prompts_at(options: CaptionOptions, places: Sequence[int]) -> CaptionOptions:
    """The options of some of the pictures, by their places among all."""
    prompt = options.prompt
    if prompt is None or isinstance(prompt, str):
        return options
    return dataclasses.replace(options, prompt=tuple(prompt[place] for place in places))


def counted(images: Iterable[T], options: CaptionOptions) -> Iterator[T]:
    """The images; raises `OptionError` as soon as there are fewer or more than prompts."""
    prompt = options.prompt
    if prompt is None or isinstance(prompt, str):
        yield from images
        return
    number = 0
    for image in images:
        if number == len(prompt):
            raise _not_equally_many(number, "more")
        number += 1
        yield image
    if number < len(prompt):
        raise _not_equally_many(len(prompt), str(number))


def _not_equally_many(prompts: int, pictures: str) -> OptionError:
    return OptionError(
        f"There are {prompts} prompts for {pictures} pictures.",
        remedy="Give one prompt for all pictures, or one (or None) for every picture.",
    )
