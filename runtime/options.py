"""What a caller may ask for: one frozen dataclass per concern, checked when it is made."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from primelens.decoding.options import DecodingOptions
from primelens.errors import OptionError

__all__ = ["CacheOptions", "CaptionOptions", "LoadOptions", "RankOptions"]


def _prompts(given: object) -> tuple[str | None, ...]:
    """One for every picture, as a tuple, so that options stay what they are."""
    if not isinstance(given, (list, tuple)):
        raise OptionError(f"prompt is {given!r}; it must be a string, or a list of them.")
    for number, prompt in enumerate(given):
        if prompt is not None and not isinstance(prompt, str):
            raise OptionError(f"prompt {number + 1} is {prompt!r}; it must be a string or None.")
    return tuple(given)


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} is {value!r}; it must be a whole number.")
    if value < least:
        raise OptionError(f"{name} is {value}; it must be at least {least}.")


@dataclass(frozen=True)
class LoadOptions:
    """How a bundle is opened.

    Attributes:
        threads: threads of the inference engine, and threads that read a batch's pictures before it
            runs; None lets the engine take one per physical core.
        spin: idle engine threads spin (lower latency) instead of sleeping (lower CPU use).
        check: "once" compares every file's SHA-256 with the manifest, but of a large bundle not
            again as long as the file system says that its files were not touched since; "full"
            compares every time, "size" only sizes and links.
        revision: commit, branch or tag, where the name is a hub id.
    """

    threads: int | None = None
    spin: bool = True
    check: Literal["full", "once", "size"] = "once"
    revision: str | None = None

    def __post_init__(self) -> None:
        _at_least("threads", self.threads, 1)
        if self.check not in ("full", "once", "size"):
            raise OptionError(f"check is {self.check!r}; it must be 'full', 'once' or 'size'.")


@dataclass(frozen=True)
class CaptionOptions:
    """How a caption is decoded; None keeps what the source checkpoint's generation_config says.

    Attributes:
        max_new_tokens: longest caption in tokens, the end token included.
        min_new_tokens: the end token is not allowed before that many tokens.
        prompt: text that the caption continues; the result's text starts after it. One for all
            pictures of a call, or a sequence with one, or None, for each of them.
        head: which of the bundle's heads writes, by its name; None takes the first of its kind.
        decoding: how tokens are chosen.
        cancel: set this event from another thread and the call raises `CancelledError` before its
            next step.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    prompt: str | Sequence[str | None] | None = None
    head: str | None = None
    decoding: DecodingOptions = DecodingOptions()  # noqa: RUF009 - frozen, hence safe to share
    cancel: threading.Event | None = None

    def __post_init__(self) -> None:
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("min_new_tokens", self.min_new_tokens, 0)
        if self.prompt is not None and not isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", _prompts(self.prompt))
        if not isinstance(self.decoding, DecodingOptions):
            raise OptionError(f"decoding is {self.decoding!r}; it must be DecodingOptions.")
        limit = self.max_new_tokens
        if limit is not None and (self.min_new_tokens or 0) > limit:
            raise OptionError(
                f"min_new_tokens ({self.min_new_tokens}) exceeds max_new_tokens ({limit})."
            )


@dataclass(frozen=True)
class RankOptions:
    """What labels are ranked by.

    Attributes:
        score: "itc" (image-text contrast) compares the embeddings of picture and label; "itm"
            (image-text matching) reads every label with the picture, one pass of the text encoder
            for each pair. None takes "itm" where the head has it.
        preselect: of so many labels with the highest "itc" an "itm" is computed, and only they are
            ranked; None ranks all of them.
    """

    score: Literal["itm", "itc"] | None = None
    preselect: int | None = None

    def __post_init__(self) -> None:
        _at_least("preselect", self.preselect, 1)
        if self.score not in ("itm", "itc", None):
            raise OptionError(f"score is {self.score!r}; it must be 'itm', 'itc' or None.")
        if self.score == "itc" and self.preselect is not None:
            raise OptionError(
                "preselect chooses what is ranked by 'itm', and score is 'itc'.",
                remedy="Leave one of them out.",
            )


@dataclass(frozen=True)
class CacheOptions:
    """Where and how embeddings are kept.

    Attributes:
        folder: made if it is absent; must belong to the user, and be writable by nobody else.
        mode: "read-write"; "read-only" uses what is kept and writes nothing; "off".
        dtype: what embeddings are stored as. "fp32" is exact; "fp16" and "int8" change them, for
            misses in the same way as for hits, by an error that every entry records.
        cap_bytes: the entries' files in all; what was used least recently leaves first.
        memory_bytes: embeddings held in memory in front of the folder.
        derived_bytes: what heads derive from embeddings (cross-attention keys and values), held in
            memory.
    """

    folder: str | Path
    mode: Literal["read-write", "read-only", "off"] = "read-write"
    dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    cap_bytes: int = 10 * 2**30
    memory_bytes: int = 64 * 2**20
    derived_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if not str(self.folder):
            raise OptionError("The cache's folder is empty; give a folder's path.")
        if self.mode not in ("read-write", "read-only", "off"):
            raise OptionError(f"mode is {self.mode!r}; use 'read-write', 'read-only' or 'off'.")
        if self.dtype not in ("fp32", "fp16", "int8"):
            raise OptionError(f"dtype is {self.dtype!r}; it must be 'fp32', 'fp16' or 'int8'.")
        _at_least("cap_bytes", self.cap_bytes, 1)
        _at_least("memory_bytes", self.memory_bytes, 0)
        _at_least("derived_bytes", self.derived_bytes, 0)
