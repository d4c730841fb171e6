"""Gives memory back that only opening graphs had to have: pages of weight files, and free heap.

ONNX Runtime maps a graph's external weights and packs most of them into memory of its own. A table
that is packed for a product *and* looked up row by row (the tied head of a decoder) stays mapped,
and all of it stays resident although a step reads a few rows: 154 MB of a GPT-2. The pages are the
file's, unchanged, so they can be given back at once and are read again where they are needed.

Parsing and optimising graphs and reading a tokenizer leave some 40 MB of free memory behind, which
glibc keeps for later unless it is told not to.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["release_heap", "release_pages"]

logger = logging.getLogger("primelens.engine")

_DONTNEED = 4  # MADV_DONTNEED of Linux
_WORTHWHILE = 8 * 2**20  # bytes of a mapping


def release_pages(weights: Path) -> int:
    """Give back the resident pages of private mappings of ``weights`` that nothing has written to.

    Does nothing but on Linux, and nothing where the system does not tell enough to be sure.

    Returns:
        Bytes that were resident.
    """
    if sys.platform != "linux":
        return 0
    released = 0
    try:
        name = str(weights.resolve())
        if name not in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
            return 0
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, size, resident in _clean_mappings(name):
            if size >= _WORTHWHILE and advise(start, size, _DONTNEED) == 0:
                released += resident
    except (OSError, ValueError, AttributeError) as error:
        logger.debug("pages of %s stay resident: %s", weights.name, error)
    return released


def release_heap() -> bool:
    """Let glibc give free memory back to the system (15 ms of 40 MB); False where there is none."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):  # another C library
        return False


def _clean_mappings(name: str) -> Iterator[tuple[int, int, int]]:
    """Start, size and resident bytes of every mapping of the file without a page of its own."""
    current: tuple[int, int] | None = None
    fields: dict[str, int] = {}
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        words = line.split(maxsplit=5)
        if words[0].endswith(":"):
            if current is not None and len(words) == 3 and words[2] == "kB":
                fields[words[0][:-1]] = int(words[1]) * 1024
            continue
        if current is not None and _clean(fields):
            yield (*current, fields["Rss"])
        low, _, high = words[0].partition("-")
        private = len(words) == 6 and words[5] == name and words[1].endswith("p")
        current = (int(low, 16), int(high, 16) - int(low, 16)) if private else None
        fields = {}
    if current is not None and _clean(fields):
        yield (*current, fields["Rss"])


def _clean(fields: dict[str, int]) -> bool:
    """Whether all pages are the file's: one that was written to is a copy, and would be lost."""
    return fields.get("Anonymous") == 0 and fields.get("Swap") == 0
