"""The store: embeddings by key, in memory and in a folder, for any number of processes."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from primelens.options import CacheOptions
from primelens.store.codec import Stored, stored, unchangeable
from primelens.store.entry_file import (
    HEAD_BYTES,
    CorruptEntryError,
    Entry,
    from_bytes,
    head_of,
)
from primelens.store.folder import StoreFolder
from primelens.store.index import Index, Row
from primelens.store.keeping import Keeping, Unmeasured
from primelens.store.key import EntryKey, Key
from primelens.store.ledger import Ledger
from primelens.store.memory import MemoryTier
from primelens.store.misses import Misses
from primelens.store.outcome import Hit, Miss, StoreStats, Verification
from primelens.store.tally import Tally

__all__ = ["EmbeddingStore"]

logger = logging.getLogger("primelens.store")


class EmbeddingStore:
    """Embeddings by key.

    A file that was torn, altered or replaced by a link is never returned: it is a miss, it is put
    aside, and it is counted. What cannot be written is not kept, which is logged once; the caller
    goes on. Safe for threads and processes; processes may die at any moment.

    Args:
        options: folder, mode and caps; the mode must not be "off".

    Raises:
        StoreError: the folder is refused or cannot be opened.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self._cap = options.cap_bytes
        self.writable = options.mode == "read-write"
        self._folder = StoreFolder(Path(options.folder), writable=self.writable)
        self._index = Index(self._folder, self._scan)
        self._memory: MemoryTier[str, Hit] = MemoryTier(options.memory_bytes)
        self._ledger = ledger = Ledger(self._folder, self._index, options.cap_bytes)
        self._tally = Tally(self.path)
        self._keeping = keeping = Keeping(self._ledger, self._tally, options.cap_bytes)
        self._misses = Misses(
            *(self._index, self._ledger, self._tally),
            given=lambda: [*ledger.given(), *keeping.given()],
            writable=self.writable,
        )
        ledger.before_telling = self._misses.explain
        self._finalizer = weakref.finalize(
            self, _close, self._keeping, self._misses, self._ledger, self._index, self._folder
        )
        for other in list(_OPEN):  # of this process: what it was given is found from now on
            if other.path == self.path:
                other.flush()
        _OPEN.add(self)
        self._settle()

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Tell the index everything, and let go of the folder; also done when Python exits."""
        _OPEN.discard(self)
        self._finalizer()

    def get(self, key: Key) -> Hit | Miss:
        """Look a key up."""
        digest = key.digest
        found: Hit | Miss | None = self._memory.get(digest)
        if found is None:
            queued = self._keeping.queued(digest)
            if queued is not None:
                found = Hit(queued.stored.restore(), queued.size, "memory")
            elif self._folder.has(digest):
                found = self._read(key)
            else:
                return self._misses.add(key)
        if isinstance(found, Hit):
            self._tally.count(f"{found.tier}_hits")
            if self.writable and self._ledger.use(digest):
                self.flush()
        return found

    def put(
        self, key: EntryKey, values: NDArray[np.float32], size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Keep values, and return them as a hit would: passed through the stored dtype.

        Args:
            key: what to file them under.
            values: ``[..., C]`` float32, finite.
            size: (width, height) of the picture in pixels.

        Raises:
            ValueError: the values are not finite or not float32.
        """
        return self.put_all([(key, values, size)])[0]

    def put_all(
        self,
        items: Sequence[tuple[Key, NDArray[np.float32], tuple[int, int]]],
        *,
        later: bool = False,
        checked: bool = False,
    ) -> list[NDArray[np.float32]]:
        """`put` for a batch.

        Args:
            items: key, values and size of each.
            later: the files need not be there when this returns; they are found all the same.
            checked: the caller has seen that all values are finite float32, and nobody writes to
                them any more.
        """
        restored, entries = [], []
        for key, values, size in items:
            exact = key.dtype == "fp32"
            if checked and exact:
                kept, given = Stored(values), values
            else:
                kept = stored(values, key.dtype)
                given = kept.restore()
                exact = kept.values.dtype == np.float32
            restored.append(given)
            self._memory.put(key.digest, Hit(given, size, "memory"), given.nbytes)
            if self.writable:
                entries.append(Unmeasured(key, size, kept, None if exact else unchangeable(values)))
        if later:
            self._keeping.keep_later(entries)
        else:
            self._keeping.keep(entries)
        return restored

    def put_stored(self, entry: Entry) -> bool:
        """Keep an entry as another store wrote it; whether it could be written."""
        unmeasured = Unmeasured(entry.head.key, entry.head.size, entry.stored, head=entry.head)
        return self.writable and self._keeping.keep([unmeasured])

    def entry(self, row: Row) -> Entry | None:
        """An entry as it lies in its file; None where it is gone or corrupt."""
        digest = row.key.digest
        try:
            return from_bytes(self._folder.read(digest)[0], digest)
        except (OSError, CorruptEntryError):
            return None

    def rows(self) -> list[Row]:
        """What the index lists, the most recently used first.

        Raises:
            OSError, sqlite3.Error: the index cannot be read.
        """
        self._settle()
        return self._index.rows()

    def totals(self) -> tuple[int, int, int]:
        """Number of entries, bytes of their files, bytes put aside as corrupt.

        What other processes wrote during the last seconds may be missing.
        """
        self._settle()
        return self._index.totals()

    def stats(self) -> StoreStats:
        """Counters of this process."""
        self._keeping.drain()
        self._misses.explain()
        counts = self._tally.counts()
        misses = {name[5:]: n for name, n in sorted(counts.items()) if name.startswith("miss ")}
        names = ("memory_hits", "disk_hits", "kept", "not_kept", "evicted", "corrupt")
        numbers = {name: counts[name] for name in names}
        return StoreStats(misses=misses, rebuilt=self._index.rebuilt, **numbers)

    def drain(self) -> None:
        """Wait until what was given to be kept later is written."""
        self._keeping.drain()

    def write_meanwhile(self) -> None:
        """Pictures are about to be decoded: a thread writes what is to be kept, if it is much."""
        self._keeping.write_meanwhile()

    def is_behind(self) -> bool:
        """Whether so much waits that it should be written before more pictures are decoded."""
        return self._keeping.is_behind()

    def write_until(self, stop: threading.Event | None) -> None:
        """Write what is to be kept, until told to stop; a mistake is logged, not raised.

        Args:
            stop: None to write all of it, and to tell the index if need be.
        """
        try:
            if stop is None:
                self._keeping.drain()
            else:
                self._keeping.write_until(stop)
        except Exception:
            logger.exception("entries could not be written")

    def flush(self) -> None:
        """Write what is to be written, and tell the index what was written and used."""
        self._misses.explain()
        if self.writable:
            self._keeping.drain()
            self._guarded(self._ledger.tell)

    def _settle(self) -> None:
        """`flush`, and enter what processes that died have written."""
        self.flush()
        if self.writable and self._folder.has_leftovers():
            self._guarded(lambda: self._index.recover(self._cap))

    def verify(self) -> Verification:
        """Read and check every file; what is corrupt is put aside."""
        listed = {row.key.digest for row in self.rows()}
        report = Verification()
        for digest, _, _ in self._folder.entries():
            report.checked += 1
            report.unlisted += digest not in listed
            listed.discard(digest)
            try:
                content, inode = self._folder.read(digest)
            except FileNotFoundError:
                continue  # evicted since it was listed
            except OSError:
                content, inode = b"", None
            try:
                from_bytes(content, digest)
            except CorruptEntryError:
                report.corrupt.append(digest)
                self._put_aside(digest, inode)
        report.lost = len(listed)
        if self.writable and (report.unlisted or report.lost):
            self._index.rebuild()
        return report

    def prune(self, cap_bytes: int) -> int:
        """Evict down to a size; returns how many entries left."""
        self.flush()
        self._memory.clear()
        return self._index.recover(cap_bytes)

    def clear(self) -> int:
        """Remove every entry, indexed or not; returns how many."""
        removed = self.prune(0)
        removed += sum(self._folder.remove(digest) for digest, _, _ in self._folder.entries())
        for name, _ in self._folder.quarantined():
            self._folder.remove_quarantined(name)
        self._index.rebuild()
        return removed

    def rebuild_index(self) -> None:
        """Make the index anew from the files."""
        self.flush()
        self._index.rebuild()

    def _read(self, key: Key) -> Hit | Miss:
        digest, inode = key.digest, None
        try:
            content, inode = self._folder.read(digest)
            entry = from_bytes(content, digest)
        except FileNotFoundError:
            return self._misses.add(key)
        except OSError as error:
            if error.errno != errno.ELOOP:  # which says that it is a link
                self._tally.notice(error)
                return self._counted(Miss("unreadable"))
            self._put_aside(digest, inode)
            return self._counted(Miss("corrupt"))
        except CorruptEntryError:
            self._put_aside(digest, inode)
            return self._counted(Miss("corrupt"))
        values = entry.stored.restore()
        size = entry.head.size
        self._memory.put(digest, Hit(values, size, "memory"), values.nbytes)
        return Hit(values, size, "disk")

    def _counted(self, miss: Miss) -> Miss:
        self._tally.count(f"miss {miss.reason}")
        return miss

    def _put_aside(self, digest: str, inode: int | None) -> None:
        self._tally.count("corrupt")
        logger.warning("%s: the entry %s is corrupt", self.path, digest)
        if self.writable:
            aside = self._folder.quarantine(digest, inode)
            self.flush()
            self._guarded(lambda: self._index.forget(digest, "corrupt", aside))

    def _scan(self, digests: Iterable[str] | None = None) -> Iterator[Row]:
        """Rows from the files; a file whose header is senseless is put aside."""
        for digest, size, changed in self._folder.entries(digests):
            inode = None
            try:
                content, inode = self._folder.read(digest, HEAD_BYTES)
                head = head_of(content, digest)
            except FileNotFoundError:
                continue
            except (OSError, CorruptEntryError):
                self._tally.count("corrupt")
                self._folder.quarantine(digest, inode)
                continue
            yield Row(head.key, size, changed, head.relative_error)

    def _guarded(self, work: Callable[[], object]) -> None:
        """Run ``work``; a disk or index that fails is noticed and costs nothing else."""
        try:
            work()
        except (OSError, sqlite3.Error) as error:
            self._tally.notice(error)


_OPEN: weakref.WeakSet[EmbeddingStore] = weakref.WeakSet()


def _close(
    keeping: Keeping, misses: Misses, ledger: Ledger, index: Index, folder: StoreFolder
) -> None:
    keeping.close()
    misses.explain()
    if folder.writable:
        ledger.close()
    index.close()
    folder.close()
