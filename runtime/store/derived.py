"""The second tier: what a head's connector derives from embeddings, held in memory.

The key of a derived set of tensors is the SHA-256 of the canonical JSON of::

    {"connector": "<sha256>",     of the connector's graph file: its precision, layout and dtype
     "derived_version": 1,
     "entry": "<sha256>",         key of the embedding, `primelens.store.key`
     "head": "<sha256>",          `weights_digest` of *all* the head's weights
     "prompt": [1, 5]}            token ids, where the tensors depend on them

so that nothing derived outlives a re-tuned head. It is never written to disk: it is larger than the
embedding, and a new head makes all of it worthless.

Most pictures come once, and to copy what is derived from them costs more than all the rest of the
store. So the first time the key alone is noted; what is derived the second time is held.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from primelens.engine import Array
from primelens.store.key import around
from primelens.store.memory import MemoryTier

__all__ = ["DERIVED_VERSION", "DerivedTensors", "DerivedTier"]

DERIVED_VERSION = 1

_NOTED = 2**14  # keys of what was derived once


class DerivedTensors:
    """The memory that the heads of a model share.

    Args:
        cap: bytes; 0 keeps nothing.
    """

    def __init__(self, cap: int) -> None:
        self.memory: MemoryTier[str, dict[str, Array]] = MemoryTier(cap)
        self.hits = self.misses = 0
        self._noted: MemoryTier[tuple[str, str, str], bool] = MemoryTier(_NOTED if cap else 0)
        self._lock = threading.Lock()

    def tier(self, head: str, connector: str) -> DerivedTier:
        """The share of the head whose weights and connector graph have these digests."""
        return DerivedTier(self, head, connector)

    def comes_again(self, head: str, connector: str, entry: str) -> bool:
        """Whether this was noted before; it is now."""
        whole = head, connector, entry  # hashing them for a key would cost as much as the noting
        known = self._noted.get(whole) is not None
        self._noted.put(whole, True, 1)
        return known

    def count(self, *, hit: bool, pictures: int) -> None:
        """Count pictures that were found, or not."""
        with self._lock:
            if hit:
                self.hits += pictures
            else:
                self.misses += pictures


@dataclass(frozen=True)
class DerivedTier:
    """One head's share of the second tier.

    Attributes:
        tensors: the shared memory.
        head: digest of all the head's weights.
        connector: SHA-256 of its connector's graph file.
    """

    tensors: DerivedTensors
    head: str
    connector: str

    def key(self, entry: str, prompt: Sequence[int] = ()) -> str:
        """The key of what is derived from one embedding, as the module's docstring defines it."""
        before, after = _around_entry(self.head, self.connector, tuple(prompt))
        return hashlib.sha256(before + entry.encode() + after).hexdigest()

    def fill(self, entries: Sequence[str | None], buffers: Mapping[str, Array]) -> bool:
        """Copy what is held into the rows of ``buffers``; whether all of it was held.

        Args:
            entries: keys of the embeddings, one per row; None for one that has no key.
            buffers: name → ``[rows, ...]``, what the connector would write.
        """
        found = []
        for entry in entries:
            held = None if entry is None else self.tensors.memory.get(self.key(entry))
            if held is None or held.keys() != buffers.keys():
                self.tensors.count(hit=False, pictures=len(entries))
                return False
            found.append(held)
        for row, held in enumerate(found):
            for name, values in held.items():
                np.copyto(buffers[name][row], values)
        self.tensors.count(hit=True, pictures=len(entries))
        return True

    def keep(self, entries: Sequence[str | None], buffers: Mapping[str, Array]) -> None:
        """Hold copies of the rows that the connector wrote, of pictures that come again."""
        for row, entry in enumerate(entries):
            if entry is None or not self.tensors.comes_again(self.head, self.connector, entry):
                continue
            held = {name: values[row].copy() for name, values in buffers.items()}
            nbytes = sum(values.nbytes for values in held.values())
            self.tensors.memory.put(self.key(entry), held, nbytes)


@lru_cache(maxsize=64)
def _around_entry(head: str, connector: str, prompt: tuple[int, ...]) -> tuple[bytes, bytes]:
    """A key's document in front of the entry and behind it, the same for every picture."""
    return around(
        "entry",
        {
            "derived_version": DERIVED_VERSION,
            "head": head,
            "connector": connector,
            "prompt": list(prompt),
        },
    )
