"""What one process counts of its store, and the faults that it has told of."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import Counter
from pathlib import Path

__all__ = ["Tally"]

logger = logging.getLogger("primelens.store")


class Tally:
    """Counters of one process, and the faults that it has told of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: Counter[str] = Counter()
        self._noticed: set[str] = set()
        self._lock = threading.Lock()

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += by

    def counts(self) -> Counter[str]:
        """All counters, as they are now."""
        with self._lock:
            return Counter(self._counts)

    def notice(self, error: OSError | sqlite3.Error) -> None:
        """Log a fault; loudly the first time."""
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        with self._lock:
            known = text in self._noticed
            self._noticed.add(text)
        level = logging.DEBUG if known else logging.WARNING
        logger.log(level, "%s: embeddings are not kept or not found: %s", self._path, text)
