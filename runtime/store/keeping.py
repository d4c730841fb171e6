"""Writing entries, at once or behind the caller's back.

`Keeping.keep_later` hands entries to a thread of its own, which measures the error of storing them,
makes their files' content and writes it, while the caller goes on to the next picture. The queue is
bounded: a caller that is faster than the disk waits. Entries are written several at a time. What is
still queued when the process is killed is not kept; when it ends, or closes the store, it is waited
for.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from primelens.store.database import Row
from primelens.store.entry_file import Entry, to_parts
from primelens.store.ledger import Ledger

__all__ = ["Keeping", "Tally", "Unmeasured"]

logger = logging.getLogger("primelens.store")

_MOST_QUEUED = 64
_AT_ONCE = 16  # entries that are worth waking for: the code is cold for the first of them only
_SECONDS = 0.1  # that fewer wait


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


@dataclass
class Unmeasured:
    """An entry that is to be written.

    Attributes:
        entry: without its errors, if there are ``values``.
        values: that the error of storing is measured against; nobody may change them any more.
        used: when (ns) it was given to be kept, or used since.
    """

    entry: Entry
    values: NDArray[np.float32] | None = None
    used: int = field(default_factory=time.time_ns)

    def measured(self) -> Entry:
        """The entry with its errors."""
        if self.values is None:
            return self.entry
        largest, relative = self.entry.stored.error(self.values)
        head = replace(self.entry.head, max_error=largest, relative_error=relative)
        return replace(self.entry, head=head)


class Keeping:
    """Writes entries; safe for threads and after a fork.

    Args:
        ledger: what writes files.
        tally: where it is counted.
        cap: bytes of all entries; a larger one is not kept.
    """

    def __init__(self, ledger: Ledger, tally: Tally, cap: int) -> None:
        self._ledger, self._tally, self._cap = ledger, tally, cap
        self._reset()
        _ALIVE.add(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Unmeasured] = deque()  # the first is being written
        self._thread: threading.Thread | None = None
        self._closed = False
        self._hurried = 0  # callers that wait

    def keep(self, entries: Sequence[Unmeasured]) -> bool:
        """Write entries now, after those that are queued.

        A disk or index that fails costs the entries alone. Returns whether all are kept.
        """
        self.drain()
        return self._keep(entries)

    def _keep(self, entries: Sequence[Unmeasured]) -> bool:
        kept = 0
        for entry in entries:
            try:
                self._write(entry.measured(), entry.used)
                kept += 1
            except (OSError, sqlite3.Error) as error:
                self._tally.notice(error)
        self._tally.count("kept", kept)
        self._tally.count("not_kept", len(entries) - kept)
        return kept == len(entries)

    def keep_later(self, entries: Sequence[Unmeasured]) -> None:
        """Have them written by the thread, in their order."""
        with self._changed:
            if self._thread is None and entries:
                self._thread = threading.Thread(
                    target=self._write_queued, name="primelens-store", daemon=True
                )
                self._thread.start()
            for entry in entries:
                if len(self._queue) >= _MOST_QUEUED:
                    self._wait_for(_MOST_QUEUED - _AT_ONCE)
                self._queue.append(entry)
                if len(self._queue) in (1, _AT_ONCE):
                    self._changed.notify_all()

    def is_queued(self, digest: str) -> bool:
        """Whether an entry waits to be written."""
        if not self._queue:
            return False
        with self._changed:
            return any(queued.entry.head.key.digest == digest for queued in self._queue)

    def use(self, digest: str) -> None:
        """Note that an entry was used, if it is queued."""
        if self._queue:
            with self._changed:
                for queued in self._queue:
                    if queued.entry.head.key.digest == digest:
                        queued.used = time.time_ns()

    def drain(self) -> None:
        """Wait until everything is written."""
        if self._queue:
            with self._changed:
                self._wait_for(0)

    def close(self) -> None:
        """`drain`, and end the thread."""
        self.drain()
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _wait_for(self, most: int) -> None:
        """Until at most so many are queued."""
        self._hurried += 1
        self._changed.notify_all()
        while len(self._queue) > most:
            self._changed.wait()
        self._hurried -= 1

    def _write_queued(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closed:
                        return
                    self._changed.wait()
                self._changed.wait_for(
                    lambda: self._hurried or self._closed or len(self._queue) >= _AT_ONCE, _SECONDS
                )
                some = list(self._queue)
            for entry in some:
                self._write_first(entry)

    def _write_first(self, entry: Unmeasured) -> None:
        try:
            self._keep([entry])
        except Exception:  # a mistake of ours must not make everybody wait for ever
            logger.exception("an entry could not be written")
        with self._changed:
            self._queue.popleft()
            if self._hurried:
                self._changed.notify_all()

    def _write(self, entry: Entry, used: int) -> None:
        parts = to_parts(entry)
        size = sum(part.nbytes for part in parts)
        if size > self._cap:
            raise OSError(errno.EFBIG, f"an entry of {size} bytes exceeds the cap")
        head = entry.head
        evicted = self._ledger.write(Row(head.key, size, used, head.relative_error), parts)
        if evicted:
            self._tally.count("evicted", evicted)


_ALIVE: weakref.WeakSet[Keeping] = weakref.WeakSet()
_AT_REST: list[Keeping] = []


def _before_fork() -> None:
    """A process is forked while no thread of a store holds a lock that the child would miss."""
    for keeping in list(_ALIVE):
        keeping._changed.acquire()
        keeping._wait_for(0)
        _AT_REST.append(keeping)


def _after_fork_in_parent() -> None:
    while _AT_REST:
        _AT_REST.pop()._changed.release()


def _after_fork_in_child() -> None:
    while _AT_REST:
        _AT_REST.pop()._reset()  # the thread was not inherited


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
