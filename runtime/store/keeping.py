"""Writing entries, at once or later.

What is given to `Keeping.keep_later` waits in memory until somebody has time to write it: in
between the tower's weights have passed through the processor's caches, so that the code which
writes has to come from memory for the first entry only. Whoever wrote beside the tower, which uses
every core, would take more time from it than the writing takes. So it is done while pictures are
decoded:

* of a batch, a reader that finds no picture left writes a few entries at a time until the others
  are done (`Keeping.write_until`). If that was not enough, or the index has to be told, all that
  waits is written before the next batch's pictures are decoded (`Keeping.is_behind`);
* of single pictures, a thread of the store writes, for a core is idle (`Keeping.write_meanwhile`).

If no picture is decoded, the caller who brings too much writes, and what has waited for a second is
written by the thread. What waits is found by `Keeping.queued`. When the process is killed it is not
kept; when it ends, or closes the store, it is written.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from primelens.store.codec import Stored
from primelens.store.database import Row
from primelens.store.entry_file import Head, unsealed
from primelens.store.key import Key
from primelens.store.ledger import Ledger, Ready
from primelens.store.tally import Tally

__all__ = ["Keeping", "Unmeasured"]

logger = logging.getLogger("primelens.store")

_WORTH, _BYTES_WORTH = 8, 2**20  # entries that are worth writing, while pictures are decoded
_AT_ONCE, _BYTES_AT_ONCE = 128, 2**25  # that are too many to wait on
_BEHIND = 48  # that are written before pictures are decoded
_FEW = 4  # at a time, by who may be told to stop
_SECONDS = 1.0  # that fewer wait


class Unmeasured:
    """An entry that is to be written.

    Args:
        key: what it is filed under.
        size: (width, height) of the picture in pixels.
        stored: its values.
        values: that the error of storing is measured against, where there is one; nobody may change
            them any more.
        head: in place of key and size, where the errors are known already.

    Attributes:
        given: when (ns) it was given to be kept.
        used: when it was used since.
    """

    __slots__ = ("given", "head", "key", "nbytes", "size", "stored", "used", "values")

    def __init__(
        self,
        key: Key,
        size: tuple[int, int],
        stored: Stored,
        values: NDArray[np.float32] | None = None,
        head: Head | None = None,
    ) -> None:
        self.key, self.size, self.stored, self.values, self.head = key, size, stored, values, head
        self.nbytes = stored.values.nbytes + (0 if values is None else values.nbytes)
        self.given, self.used = time.time_ns(), 0

    def errors(self) -> tuple[float, float]:
        """The largest and the relative error of storing."""
        if self.head is not None:
            return self.head.max_error, self.head.relative_error
        return (0.0, 0.0) if self.values is None else self.stored.error(self.values)


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
        self._changed = threading.Condition()  # the queue
        self._writing = threading.Lock()  # whose turn it is to write
        self._queue: deque[Unmeasured] = deque()
        self._latest: dict[str, Unmeasured] = {}  # of the queued with one key
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._idle = self._closed = False  # the thread is, or has to be
        self._asked = False  # the thread, to write what waits

    def keep(self, entries: Sequence[Unmeasured]) -> bool:
        """Write entries now, after those that are queued.

        A disk or index that fails costs the entries alone. Returns whether all are kept.
        """
        self.drain()
        return self._keep(entries)

    def _keep(self, entries: Sequence[Unmeasured]) -> bool:
        ready = []
        for entry in entries:
            try:
                ready.append(self._ready(entry))
            except OSError as error:
                self._tally.notice(error)
        kept, evicted = self._ledger.write(ready, self._tally.notice)
        self._tally.count("kept", kept)
        self._tally.count("not_kept", len(entries) - kept)
        self._tally.count("evicted", evicted)
        return kept == len(entries)

    def keep_later(self, entries: Sequence[Unmeasured]) -> None:
        """Have them written some time, in their order."""
        if not entries:
            return
        with self._changed:
            for entry in entries:
                self._queue.append(entry)
                self._latest[entry.key.digest] = entry
                self._bytes += entry.nbytes
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_what_waits, name="primelens-store", daemon=True
                )
                self._thread.start()
            elif self._idle:
                self._changed.notify_all()
        while len(self._queue) >= _AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
            self._write_some()

    def write_meanwhile(self) -> None:
        """Have what waits written by the thread, if it is enough to be worth it; returns at once.

        To be called by who is about to spend time outside of Python, on less than all cores.
        """
        if self._is_worth_it() and not self._asked:
            with self._changed:
                self._asked = True
                self._changed.notify_all()

    def is_behind(self) -> bool:
        """Whether so much waits, or the index has to be told so much, that it needs time."""
        count = len(self._queue)
        return count >= _BEHIND or (count > 0 and self._ledger.must_tell(count, self._bytes))

    def write_until(self, stop: threading.Event) -> None:
        """Write what waits, a few entries at a time, until told to stop.

        It is over as well when nothing waits, another thread writes, or the index has to be told,
        which takes a hundred times as long as writing an entry.
        """
        while self._queue and not stop.is_set() and self._writing.acquire(blocking=False):
            try:
                if self._ledger.must_tell(_FEW, self._bytes):
                    return
                self._write_first(_FEW)
            finally:
                self._writing.release()

    def queued(self, digest: str) -> Unmeasured | None:
        """An entry that waits to be written; it counts as used."""
        found = self._latest.get(digest)
        if found is not None:
            found.used = time.time_ns()
        return found

    def given(self) -> list[tuple[Key, int]]:
        """Keys of what is queued, and when (ns) each was given to be kept."""
        return [(queued.key, queued.given) for queued in self._queue.copy()]

    def drain(self) -> None:
        """Write what is queued."""
        while self._queue:
            self._write_some()

    def close(self) -> None:
        """`drain`, and end the thread."""
        self.drain()
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _write_some(self) -> None:
        """Write the first entries of the queue, after those that are being written."""
        with self._writing:
            self._write_first(_AT_ONCE)

    def _write_first(self, count: int) -> None:
        """The same, for who holds the lock."""
        with self._changed:
            some = list(islice(self._queue, count))
        try:
            self._keep(some)
        finally:  # a mistake of ours must not make everybody try for ever
            with self._changed:
                for entry in some:
                    self._queue.popleft()
                    self._bytes -= entry.nbytes
                    if self._latest.get(entry.key.digest) is entry:
                        del self._latest[entry.key.digest]

    def _write_what_waits(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._idle = False
                self._changed.wait_for(lambda: self._closed or self._asked, self._rest())
                if self._closed:
                    return
                late = self._queue and self._rest() == 0.0
                due = late or (self._asked and self._is_worth_it())
                self._asked = False
            if due:
                try:
                    self._write_some()
                except Exception:
                    logger.exception("entries could not be written")

    def _is_worth_it(self) -> bool:
        return len(self._queue) >= _WORTH or self._bytes >= _BYTES_WORTH

    def _rest(self) -> float:
        """Seconds until the first of the queue has waited long enough."""
        waited = (time.time_ns() - self._queue[0].given) / 1e9 if self._queue else _SECONDS
        return min(max(0.0, _SECONDS - waited), _SECONDS)

    def _ready(self, entry: Unmeasured) -> Ready:
        errors = entry.errors()
        content = unsealed(entry.key, entry.size, errors, entry.stored)
        size = content.nbytes
        if size > self._cap:
            raise OSError(errno.EFBIG, f"an entry of {size} bytes exceeds the cap")
        row = Row(entry.key, size, max(entry.given, entry.used), errors[1])
        return Ready(row, content, entry.given)


_ALIVE: weakref.WeakSet[Keeping] = weakref.WeakSet()
_AT_REST: list[Keeping] = []


def _before_fork() -> None:
    """A process is forked while no thread of a store holds a lock that the child would miss."""
    for keeping in list(_ALIVE):
        keeping._writing.acquire()
        keeping._changed.acquire()
        _AT_REST.append(keeping)


def _after_fork_in_parent() -> None:
    while _AT_REST:
        keeping = _AT_REST.pop()
        keeping._changed.release()
        keeping._writing.release()


def _after_fork_in_child() -> None:
    while _AT_REST:
        _AT_REST.pop()._reset()  # the thread was not inherited, and what waits is the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
