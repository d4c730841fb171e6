"""What a kept embedding is filed under.

The key of an entry is the SHA-256 of the canonical JSON (`primelens.schema.canonical_json`) of::

    {"dtype": "fp16",                  the dtype that it is stored in: fp32, fp16 or int8
     "frame": null,                    or {"index": 12, "timestamp_ns": 480000000} of a video
     "key_version": 1,
     "source": "<sha256>",             digest of the picture, `primelens.images.SourceImage.digest`
     "tower": "<sha256>",              identity of the tower at one tap, `primelens.identity`
     "variant": "fp32"}                precision and recipe of the computation

The name of the tap is carried along as a label. It is no part of the key, because the identity
covers it already; it serves to say *what* differs where a picture was kept under another key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeAlias, get_args

from primelens.schema import canonical_json

__all__ = [
    "KEY_VERSION",
    "EntryKey",
    "Frame",
    "Key",
    "LazyKey",
    "StoredDtype",
    "TapKeys",
    "around",
]

KEY_VERSION = 1

StoredDtype = Literal["fp32", "fp16", "int8"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_LABEL = 200
_SOURCE = "0" * 64


@dataclass(frozen=True)
class Frame:
    """A frame of a video: its number from 0, and its presentation time in nanoseconds."""

    index: int
    timestamp_ns: int

    def __post_init__(self) -> None:
        if self.index < 0:
            raise ValueError(f"the frame's index is {self.index}; it cannot be negative")


@dataclass(frozen=True)
class EntryKey:
    """The parts of a key, as the module's docstring defines them.

    Attributes:
        tower: identity (hex SHA-256) of the tower at the tap.
        variant: precision and recipe of the computation.
        dtype: what the values are stored as.
        source: digest (hex SHA-256) of the picture or video file.
        frame: which frame of a video; None for a picture.
        tap: the tap's name, a label.

    Raises:
        ValueError: a digest is no lower-case SHA-256, a label is empty or too long, or the dtype is
            none of fp32, fp16, int8.
    """

    tower: str
    variant: str
    dtype: StoredDtype
    source: str
    frame: Frame | None = None
    tap: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("tower", "source"):
            if not _DIGEST.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)!r} is not a SHA-256 in hexadecimal")
        if not 0 < len(self.variant) <= _LONGEST_LABEL or len(self.tap) > _LONGEST_LABEL:
            raise ValueError(f"variant {self.variant!r} or tap {self.tap!r} has no fitting length")
        if self.dtype not in get_args(StoredDtype):
            raise ValueError(f"the stored dtype is {self.dtype!r}, not one of fp32, fp16, int8")

    def document(self) -> dict[str, Any]:
        """The JSON document whose digest is the key."""
        frame = self.frame
        return {
            "key_version": KEY_VERSION,
            "tower": self.tower,
            "variant": self.variant,
            "dtype": self.dtype,
            "source": self.source,
            "frame": frame and {"index": frame.index, "timestamp_ns": frame.timestamp_ns},
        }

    @cached_property
    def digest(self) -> str:
        """The key (hex SHA-256)."""
        before, after = _around_source(self.tower, self.variant, self.dtype, self.frame)
        return hashlib.sha256(before + self.source.encode() + after).hexdigest()

    @property
    def whole(self) -> EntryKey:
        """This key; what `LazyKey.whole` puts together."""
        return self

    def differing(self, other: EntryKey) -> tuple[str, ...]:
        """Names of the parts in which two keys differ.

        Two taps of one tower have different identities. Where the taps' names differ, "tap" stands
        in for "tower", which then need not differ otherwise.
        """
        parts = [
            name
            for name in ("source", "tower", "variant", "dtype", "frame")
            if getattr(self, name) != getattr(other, name)
        ]
        return tuple("tap" if p == "tower" and self.tap != other.tap else p for p in parts)


class LazyKey:
    """A key of which most callers need the digest alone; its parts are put together on request.

    Args:
        tap: the keys that it is one of.
        source: digest of the picture or of the video's file.
        frame: which frame of a video.

    Raises:
        ValueError: the source is no lower-case SHA-256.

    Attributes:
        digest, source, frame, tower, variant, dtype, tap: what those of the `EntryKey` will be.
    """

    __slots__ = ("_tap", "_whole", "digest", "frame", "source")

    def __init__(self, tap: TapKeys, source: str, frame: Frame | None = None) -> None:
        if not _DIGEST.fullmatch(source):
            raise ValueError(f"source {source!r} is not a SHA-256 in hexadecimal")
        self._tap, self.source, self.frame = tap, source, frame
        self._whole: EntryKey | None = None
        before, after = tap.around if frame is None else tap.around_frame(frame)
        self.digest = hashlib.sha256(before + source.encode() + after).hexdigest()

    @property
    def tower(self) -> str:
        """Identity of the tower at the tap."""
        return self._tap.tower

    @property
    def variant(self) -> str:
        """Precision and recipe of the computation."""
        return self._tap.variant

    @property
    def dtype(self) -> StoredDtype:
        """What the values are stored as."""
        return self._tap.dtype

    @property
    def tap(self) -> str:
        """The tap's name."""
        return self._tap.tap

    @property
    def whole(self) -> EntryKey:
        """The key with its parts."""
        if self._whole is None:
            self._whole = self._tap.key(self.source, self.frame, self.digest)
        return self._whole

    def document(self) -> dict[str, Any]:
        """What `EntryKey.document` returns."""
        return self.whole.document()


Key: TypeAlias = EntryKey | LazyKey


@dataclass(frozen=True)
class TapKeys:
    """What the keys of all pictures have in common at one tap; see `EntryKey`."""

    tower: str
    variant: str
    dtype: StoredDtype
    tap: str

    @cached_property
    def around(self) -> tuple[bytes, bytes]:
        """A picture's document in front of the source's digest and behind it."""
        return _around_source(self.tower, self.variant, self.dtype, None)

    def around_frame(self, frame: Frame) -> tuple[bytes, bytes]:
        """That of a frame of a video."""
        return _around_source(self.tower, self.variant, self.dtype, frame)

    @cached_property
    def _any(self) -> EntryKey:
        return EntryKey(self.tower, self.variant, self.dtype, _SOURCE, tap=self.tap)

    def key(self, source: str, frame: Frame | None, digest: str) -> EntryKey:
        """A key whose digest is known, and whose parts have been checked."""
        key = object.__new__(EntryKey)
        vars(key).update(vars(self._any), source=source, frame=frame, digest=digest)
        return key


@lru_cache(maxsize=256)
def _around_source(
    tower: str, variant: str, dtype: StoredDtype, frame: Frame | None
) -> tuple[bytes, bytes]:
    """A key's document in front of the source's digest and behind it.

    Keys of one tower differ in their sources alone; JSON is made once for all of them.
    """
    return around("source", EntryKey(tower, variant, dtype, _SOURCE, frame).document())


def around(name: str, document: dict[str, Any]) -> tuple[bytes, bytes]:
    """Canonical JSON in front of the text of one part and behind it, whatever that text is.

    The JSON is made once for all documents that differ in a digest alone, which needs no escapes.
    """
    opening, place = f'"{name}":"'.encode(), _SOURCE.encode()
    before, after = canonical_json({**document, name: _SOURCE}).split(opening + place)
    return before + opening, after
