"""Calling Pillow's decoders on bytes that nobody vouches for."""

from __future__ import annotations

import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from primelens.errors import ImageError

__all__ = ["DECODE_ERRORS", "decoding"]

# What Pillow's decoders raise on broken files.
DECODE_ERRORS = (
    OSError,  # UnidentifiedImageError is one of them
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Warning,  # another thread may turn warnings into errors at this very moment
)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever Pillow raises on a broken picture becomes an `ImageError`; its warnings are muted.

    Only calls of Pillow belong inside: an error of our own must not pass for a broken picture.
    """
    try:
        with _MUTED:
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"The picture {name} has more pixels than Pillow's own limit: {error}",
            remedy="Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS.",
        ) from error
    except DECODE_ERRORS as error:
        raise ImageError(
            f"The picture {name} is broken or truncated: {str(error) or type(error).__name__}.",
            remedy="Fetch or save the file again.",
        ) from error


class _MutedPillow:
    """Mutes the warnings of Pillow's modules while at least one thread decodes.

    `warnings.catch_warnings` is not safe in threads: it saves and restores the process's list as a
    whole, so two overlapping uses can leave the filters changed for good. This adds one entry and
    removes that very entry; the lock is not held while decoding.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._list: Any = None
        self._entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    def __enter__(self) -> None:
        filters: Any = warnings.filters
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._list = filters
            # Another thread may have swapped the list since the first user entered.
            if self._entry not in filters:
                filters.insert(0, self._entry)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                current: Any = warnings.filters
                for filters in (self._list, current):
                    while self._entry in filters:
                        filters.remove(self._entry)
                self._list = None


_MUTED = _MutedPillow()
