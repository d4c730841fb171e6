"""A least-recently-used mapping that is capped in bytes and safe for threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["MemoryTier"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class MemoryTier(Generic[K, V]):
    """Keeps what was used last, up to ``cap`` bytes in all.

    Args:
        cap: bytes; 0 keeps nothing.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        """The value, now the most recently used; None where it is not held."""
        if not self._items:
            return None
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Hold a value of ``nbytes``; one that exceeds the cap on its own is not held."""
        if nbytes > self._cap and not self._items:
            return
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._bytes -= old[1]
            if nbytes > self._cap:
                return
            self._items[key] = (value, nbytes)
            self._bytes += nbytes
            while self._bytes > self._cap:
                _, (_, freed) = self._items.popitem(last=False)
                self._bytes -= freed

    def discard(self, key: K) -> None:
        """Drop a value if it is held."""
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._bytes -= old[1]

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._items.clear()
            self._bytes = 0
