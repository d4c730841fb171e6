"""What one process has written and used, and the index does not know yet.

The index is only told now and then: when many entries have come together, when the last time was
long ago, and at the end. In between a writer lives on bytes that the index has set apart for it, so
the cap holds all the time. What it writes it also notes in a file of its own, a line an entry; if
it is killed, whoever needs room next, or opens the store, reads the notes (`Index.recover`). Lost
is then only which entries were *used* since.

Where the cap is so small that one entry exceeds a writer's share of it, every entry is a
transaction of its own.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from primelens.store.database import Row
from primelens.store.entry_file import Unsealed
from primelens.store.folder import StoreFolder
from primelens.store.index import Index, Report
from primelens.store.key import Key
from primelens.store.writers import Writer

__all__ = ["Ledger", "Ready"]

_MOST_ENTRIES = 512
_MOST_USES = 256
_SECONDS = 10.0
_SHARE = 64  # a writer has at most this part of the cap set apart
_MOST_BYTES = 16 * 2**20  # so that a hundred writers do not fill a store with what they may need


class Ready(NamedTuple):
    """An entry that can be written.

    Attributes:
        row: what the index will be told.
        content: the file's.
        given: when (ns) it was given to be kept.
    """

    row: Row
    content: Unsealed
    given: int


class Ledger:
    """Writes entries' files, and keeps the index informed; safe for threads and after a fork.

    Args:
        folder: the store's folder, writable.
        index: its index.
        cap: bytes of all entries together.

    Attributes:
        lock: is held whenever files are written or the index is told.
        before_telling: is called each time before the index is told.
    """

    def __init__(self, folder: StoreFolder, index: Index, cap: int) -> None:
        self._folder, self._index, self._cap = folder, index, cap
        self._spare = min(_MOST_BYTES, cap // _SHARE)
        self.lock = threading.RLock()
        self.before_telling: Callable[[], None] = lambda: None
        self._uses_lock = threading.Lock()
        self._writer: Writer | None = None
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._room = 0
        self._granted_by = -1  # which database set the room apart
        self._wrote: dict[str, tuple[Row, int]] = {}  # and when (ns) it was given
        self._used: dict[str, int] = {}
        self._told = time.monotonic()

    def write(
        self, entries: Sequence[Ready], notice: Callable[[OSError | sqlite3.Error], None]
    ) -> tuple[int, int]:
        """Write entries' files.

        Args:
            entries: in the order in which they are written.
            notice: is told of a disk or an index that fails, which costs that entry alone.

        Returns:
            How many are written; how many other entries left to make room.
        """
        kept = evicted = 0
        rest = deque(entries)
        with self.lock:
            while rest:
                try:
                    writer = self._enlisted()
                    evicted += self._make_room(rest[0].row)
                except (OSError, sqlite3.Error) as error:
                    notice(error)
                    rest.popleft()
                    continue
                run = [rest.popleft()]
                while rest and self._has_room(rest[0].row, len(run)):
                    self._room -= rest[0].row.size
                    run.append(rest.popleft())
                kept += self._write_run(writer, run, notice)
        return kept, evicted

    def _write_run(
        self,
        writer: Writer,
        run: Sequence[Ready],
        notice: Callable[[OSError | sqlite3.Error], None],
    ) -> int:
        """Write entries that there is room for; how many are written."""
        failed = 0
        try:
            names = writer.announce([entry.row.key.digest for entry in run])
        except OSError as error:
            notice(error)
            self._room += sum(entry.row.size for entry in run)
            return 0
        for entry, name in zip(run, names, strict=True):
            digest = entry.row.key.digest
            try:
                self._folder.write(digest, entry.content.sealed(), name)
            except OSError as error:
                notice(error)
                self._room += entry.row.size
                failed += 1
            else:
                before = self._wrote.get(digest)
                self._wrote[digest] = (entry.row, before[1] if before else entry.given)
        return len(run) - failed

    def use(self, digest: str) -> bool:
        """Note that an entry was used; whether the index should be told."""
        with self._uses_lock:
            self._used[digest] = time.time_ns()
            return len(self._used) >= _MOST_USES or self._late()

    def given(self) -> list[tuple[Key, int]]:
        """Keys that the index does not know yet, and when (ns) each was given to be kept."""
        with self.lock:
            return [(row.key, given) for row, given in self._wrote.values()]

    def tell(self) -> None:
        """Tell the index everything, and give back what is set apart.

        Raises:
            OSError, sqlite3.Error: the index fails; what it does not know stays noted.
        """
        with self.lock:
            self._abandon_after_fork()
            if self._wrote or self._used or self._room:
                self._tell(None)

    def close(self) -> None:
        """Tell the index, if it can be told, and leave."""
        with self.lock:
            self._abandon_after_fork()
            try:
                self.tell()
            except (OSError, sqlite3.Error):
                if self._writer is not None:
                    self._writer.close()  # its notes stay, for others to read
            else:
                if self._writer is not None:
                    self._folder.discharge(self._writer)
            self._writer = None

    def _enlisted(self) -> Writer:
        self._abandon_after_fork()
        if self._writer is None:
            self._writer = self._folder.enlist()
        return self._writer

    def _abandon_after_fork(self) -> None:
        """What a forked process inherits is its parent's to tell."""
        if self._process != os.getpid():
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._begin()

    def must_tell(self, count: int, nbytes: int) -> bool:
        """Whether the index has to be told before so many more entries are written."""
        return nbytes > self._room or len(self._wrote) + count >= _MOST_ENTRIES or self._late()

    def _late(self) -> bool:
        return time.monotonic() - self._told > _SECONDS

    def _make_room(self, row: Row) -> int:
        granted = self._has_room(row) and self._granted_by == self._index.found
        if granted and not self._late():
            self._room -= row.size
            return 0
        return self._tell(row)

    def _has_room(self, row: Row, others: int = 0) -> bool:
        """Whether what is set apart suffices for an entry after ``others`` more."""
        return row.size <= self._room and len(self._wrote) + others < _MOST_ENTRIES

    def _tell(self, coming: Row | None) -> int:
        """One transaction; returns how many entries were evicted."""
        self.before_telling()
        later = "" if coming is None else coming.key.digest  # it has no row that could be touched
        with self._uses_lock:
            used, self._used = self._used, {k: n for k, n in self._used.items() if k == later}
        report = Report(
            writer=self._writer.name if self._writer is not None else "",
            wrote=[row for row, _ in self._wrote.values()],
            touched=used,
            coming=coming,
            spare=self._spare,
            granted_by=self._granted_by,
        )
        try:
            self._room, evicted = self._index.record(report, self._cap)
        except (OSError, sqlite3.Error):
            with self._uses_lock:
                self._used = {**used, **self._used}
            raise
        self._granted_by = self._index.found
        self._wrote.clear()
        self._told = time.monotonic()
        if self._writer is not None:
            with suppress(OSError):  # too many notes do no harm
                self._writer.recorded()
        return evicted
