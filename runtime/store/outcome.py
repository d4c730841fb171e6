"""What a store answers, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hit", "Miss", "Reason", "StoreStats", "Verification"]

Reason = Literal["new", "differs", "evicted", "corrupt", "unreadable"]


@dataclass(frozen=True)
class Hit:
    """A kept embedding.

    Attributes:
        values: ``[L, C]`` (or ``[C]``) float32, read-only.
        size: (width, height) of the picture in pixels.
        tier: "memory" or "disk".
    """

    values: NDArray[np.float32]
    size: tuple[int, int]
    tier: Literal["memory", "disk"]


class Miss:
    """Why nothing was found.

    Args:
        reason: "new": this picture was never kept; "differs": it is kept under another key;
            "evicted": it was kept, and left for others (or its file was removed); "corrupt": its
            file failed the check; "unreadable": the folder could not be read.
        differing: for "differs", the parts of the key in which the nearest entry differs: "tower",
            "tap", "variant", "dtype", "frame".
    """

    __slots__ = ("_answer", "_find_out")

    def __init__(self, reason: Reason, differing: tuple[str, ...] = ()) -> None:
        self._answer: tuple[Reason, tuple[str, ...]] | None = (reason, differing)
        self._find_out: Callable[[], None] | None = None

    @staticmethod
    def unexplained(find_out: Callable[[], None]) -> Miss:
        """A miss whose reason is looked for when somebody asks: ``find_out`` calls `explain`."""
        miss = Miss("new")
        miss._answer, miss._find_out = None, find_out
        return miss

    def explain(self, reason: Reason, differing: tuple[str, ...] = ()) -> None:
        """Give the reason."""
        self._answer, self._find_out = (reason, differing), None

    @property
    def reason(self) -> Reason:
        """The reason."""
        return self._explained()[0]

    @property
    def differing(self) -> tuple[str, ...]:
        """The parts of the key that differ."""
        return self._explained()[1]

    def _explained(self) -> tuple[Reason, tuple[str, ...]]:
        find_out = self._find_out
        if self._answer is None and find_out is not None:
            find_out()
        return self._answer or ("new", ())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Miss) and self._explained() == other._explained()

    def __hash__(self) -> int:
        return hash(self._explained())

    def __reduce__(self) -> tuple[type[Miss], tuple[Reason, tuple[str, ...]]]:
        return Miss, self._explained()

    def __repr__(self) -> str:
        return f"Miss({self.reason!r}, {self.differing!r})"

    def __str__(self) -> str:
        if self.reason == "differs":
            return f"kept with another {' and '.join(self.differing)}"
        return {
            "new": "never kept",
            "evicted": "evicted",
            "corrupt": "the kept file was corrupt",
            "unreadable": "the store cannot be read",
        }[self.reason]


@dataclass(frozen=True)
class StoreStats:
    """What happened since the store was opened, in this process.

    Attributes:
        memory_hits, disk_hits: found, by tier.
        misses: how many for which reason.
        kept: entries written.
        not_kept: entries that could not be written (disk full, larger than the cap, ...).
        evicted: entries that left to make room for those written here.
        corrupt: files that failed their check.
        rebuilt: how often the index was made anew.
        derived_hits, derived_misses: pictures whose derived tensors were held in memory, or not.
    """

    memory_hits: int
    disk_hits: int
    misses: dict[str, int]
    kept: int
    not_kept: int
    evicted: int
    corrupt: int
    rebuilt: int
    derived_hits: int = 0
    derived_misses: int = 0


@dataclass
class Verification:
    """What `EmbeddingStore.verify` found: files read, keys of the corrupt, files not in the index,
    rows of the index without a file.
    """

    checked: int = 0
    corrupt: list[str] = field(default_factory=list)
    unlisted: int = 0
    lost: int = 0
