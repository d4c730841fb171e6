"""One entry as one safetensors file.

A file can be read by any safetensors library. What this module adds are the parts of the key in
the header's ``__metadata__``, which rebuild the index, and a checksum. The header begins with::

    {"__metadata__":{"checksum":"xxxxxxxx",

where ``xxxxxxxx`` is the CRC-32 (hex, lower case) of the whole file without those eight digits.
The CRC notices every change of up to 32 neighbouring bits, and any other with a probability of
1 - 2^-32. It guards against accidents (a torn write, a failing disk), not against forgery: that is
what the folder's permissions are for.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from primelens.store.codec import Stored
from primelens.store.key import EntryKey, Frame, Key, StoredDtype

__all__ = [
    "ENTRY_FORMAT",
    "HEAD_BYTES",
    "CorruptEntryError",
    "Entry",
    "Head",
    "Unsealed",
    "from_bytes",
    "head_of",
    "unsealed",
]

ENTRY_FORMAT = "primelens-entry-1"

_OPENING = b'{"__metadata__":{"checksum":"'
_PLACE = 8 + len(_OPENING)  # of the checksum's digits in the file
_DIGITS = 8
_SOURCE = "0" * 64  # stands for the picture's digest
HEAD_BYTES = 4096  # hold any header: labels are at most 200 characters
_NAMES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
}

_SENSELESS = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class CorruptEntryError(Exception):
    """A file is not what was written; the store turns this into a miss."""


@dataclass(frozen=True)
class Head:
    """What an entry's header says beside the values.

    Attributes:
        key: what it is filed under.
        size: (width, height) of the picture in pixels.
        max_error: the largest difference between the values and what the tower said.
        relative_error: RMS of the difference over the RMS of what the tower said.
    """

    key: EntryKey
    size: tuple[int, int]
    max_error: float = 0.0
    relative_error: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A kept embedding: its header and its values."""

    head: Head
    stored: Stored


class Unsealed(NamedTuple):
    """A file's content without its checksum.

    Attributes:
        header: in which eight digits are to be put in place.
        arrays: what follows, each with elements and C-contiguous.
    """

    header: bytearray
    arrays: list[NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum([array.nbytes for array in self.arrays])

    def sealed(self) -> list[memoryview]:
        """All of the content, as buffers to be written one after the other."""
        parts = [memoryview(self.header), *[array.data.cast("B") for array in self.arrays]]
        self.header[_PLACE : _PLACE + _DIGITS] = _checksum(parts)
        return parts


def unsealed(
    key: Key, size: tuple[int, int], errors: tuple[float, float], kept: Stored
) -> Unsealed:
    """The file's content, but for its checksum.

    Args:
        key, size, errors: what `Head` has.
        kept: the values.
    """
    arrays = kept.contiguous
    before, after = _around_own(
        *(key.tower, key.tap, key.variant, key.dtype),
        tuple([(name, array.dtype, array.shape) for name, array in arrays.items()]),
    )
    text = before + _own_text(key.source, key.frame, size, errors) + after
    text += b" " * (-len(text) % 8)
    if len(text) > HEAD_BYTES - 8:
        raise ValueError(f"the header would have {len(text)} bytes")
    header = bytearray(len(text).to_bytes(8, "little") + text)
    return Unsealed(header, [array for array in arrays.values() if array.size])


def _own_text(
    source: str, frame: Frame | None, size: tuple[int, int], errors: tuple[float, float]
) -> bytes:
    """The part of the header that is an entry's own; JSON needs no escapes in it."""
    place = "" if frame is None else f"{frame.index} {frame.timestamp_ns}"
    return (
        f'"source":"{source}","frame":"{place}","size":"{size[0]} {size[1]}",'
        f'"max_error":"{errors[0]!r}","relative_error":"{errors[1]!r}"'
    ).encode()


@lru_cache(maxsize=64)
def _around_own(
    tower: str,
    tap: str,
    variant: str,
    dtype: StoredDtype,
    layout: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...],
) -> tuple[bytes, bytes]:
    """The header in front of an entry's own part and behind it, for all entries of one tower."""
    head = Head(EntryKey(tower, variant, dtype, _SOURCE, tap=tap), (0, 0))
    header: dict[str, Any] = {"__metadata__": {"checksum": "0" * _DIGITS, **_metadata(head)}}
    offset = 0
    for name, numbers, shape in layout:
        kind = next(kind for kind, known in _NAMES.items() if known == numbers)
        end = offset + math.prod(shape) * numbers.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    whole = json.dumps(header, separators=(",", ":")).encode("ascii")
    before, after = whole.split(_own_text(_SOURCE, None, (0, 0), (0.0, 0.0)))
    return before, after


def from_bytes(content: bytes, digest: str | None = None) -> Entry:
    """Read a file's content; the values share its memory.

    Args:
        content: all bytes of the file.
        digest: the key that the file must belong to; None takes any.

    Raises:
        CorruptEntryError: the checksum is wrong, or the file belongs to another key.
    """
    if len(content) < _PLACE + _DIGITS:
        raise CorruptEntryError(f"{len(content)} bytes are no entry")
    if content[_PLACE : _PLACE + _DIGITS] != _checksum([memoryview(content)]):
        raise CorruptEntryError("the checksum is wrong")
    header, start = _header(content)
    try:
        arrays = {
            name: _array(described, content, start)
            for name, described in header.items()
            if name != "__metadata__"
        }
        entry = Entry(_head(header["__metadata__"]), Stored.of(arrays))
    except _SENSELESS as error:
        raise CorruptEntryError(f"the header makes no sense: {error}") from error
    if digest is not None and entry.head.key.digest != digest:
        raise CorruptEntryError("the file belongs to another key")
    return entry


def head_of(content: bytes, digest: str) -> Head:
    """Read a header alone, from the first `HEAD_BYTES` of a file; nothing is checksummed.

    Raises:
        CorruptEntryError: there is no header, or it belongs to another key than ``digest``.
    """
    header, _ = _header(content)
    try:
        head = _head(header["__metadata__"])
    except _SENSELESS as error:
        raise CorruptEntryError(f"the header makes no sense: {error}") from error
    if head.key.digest != digest:
        raise CorruptEntryError("the file belongs to another key")
    return head


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The parsed header and where the values start."""
    length = int.from_bytes(content[:8], "little")
    try:
        if not 0 < length <= HEAD_BYTES - 8:
            raise ValueError(f"it has {length} bytes")
        header = json.loads(content[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("it is no object")
    except _SENSELESS as error:
        raise CorruptEntryError(f"the header makes no sense: {error}") from error
    return header, 8 + length


def _checksum(parts: Sequence[memoryview]) -> bytes:
    first = parts[0]
    crc = zlib.crc32(first[_PLACE + _DIGITS :], zlib.crc32(first[:_PLACE]))
    for part in parts[1:]:
        crc = zlib.crc32(part, crc)
    return b"%08x" % crc


def _metadata(head: Head) -> dict[str, str]:
    key, frame = head.key, head.key.frame
    return {
        "format": ENTRY_FORMAT,
        "tower": key.tower,
        "tap": key.tap,
        "variant": key.variant,
        "dtype": key.dtype,
        "source": key.source,
        "frame": "" if frame is None else f"{frame.index} {frame.timestamp_ns}",
        "size": f"{head.size[0]} {head.size[1]}",
        "max_error": repr(head.max_error),
        "relative_error": repr(head.relative_error),
    }


def _head(metadata: Mapping[str, str]) -> Head:
    if metadata["format"] != ENTRY_FORMAT:
        raise ValueError(f"unknown format {metadata['format']!r}")
    frame = [int(part) for part in metadata["frame"].split()]
    dtype: StoredDtype = metadata["dtype"]  # type: ignore[assignment]  # EntryKey checks it
    key = EntryKey(
        tower=metadata["tower"],
        variant=metadata["variant"],
        dtype=dtype,
        source=metadata["source"],
        frame=Frame(frame[0], frame[1]) if frame else None,
        tap=metadata["tap"],
    )
    width, height = (int(part) for part in metadata["size"].split())
    errors = float(metadata["max_error"]), float(metadata["relative_error"])
    return Head(key, (width, height), *errors)


def _array(described: Mapping[str, Any], content: bytes, start: int) -> NDArray[Any]:
    dtype, shape = _NAMES[described["dtype"]], tuple(described["shape"])
    first, last = described["data_offsets"]
    count = math.prod(shape)
    if last - first != count * dtype.itemsize:
        raise ValueError("offsets and shape disagree")
    array: NDArray[Any] = np.frombuffer(content, dtype, count, start + first)
    return array.reshape(shape)
