"""The index of a store: which entry was used when, and how large it is.

A SQLite database in WAL mode. It decides what is evicted and says why something is missing; what an
entry *contains* is the business of its file alone, so a lost, stale or garbled index costs
recency, never correctness. It is rebuilt from the files where it cannot be read.

Writers tell it about many entries at once (`primelens.store.ledger`). Before they write anything
they have bytes set apart for it. Invariants that let processes die at any moment:

* the rows, the quarantine and what is set apart together are never below the sum over the files
  (but for one entry of each writer, while an index is being replaced), and never above the cap;
* a row is entered when its file is there, and removed after its file is;
* what a writer that died had set apart stays so until its notes have been read, and whatever it
  wrote is entered: `Index.recover`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from primelens.store.database import (
    DAMAGE,
    Row,
    connect,
    enter,
    fates,
    of_sources,
    remember,
    row_of,
    totals,
    touch,
)
from primelens.store.folder import INDEX, StoreFolder
from primelens.store.key import Key
from primelens.store.writers import DeadWriters

__all__ = ["Index", "Report", "Row"]

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What a writer tells the index at once.

    Attributes:
        writer: its name.
        wrote: rows of entries whose files it has written.
        touched: key → time of last use (ns).
        coming: an entry that it writes next; None if it writes nothing more.
        spare: bytes that it wants set apart, for this entry and later ones; none if the entry alone
            needs more.
        granted_by: inode of the database that had set the bytes apart for what it wrote.
    """

    writer: str
    wrote: Sequence[Row] = ()
    touched: Mapping[str, int] = field(default_factory=dict)
    coming: Row | None = None
    spare: int = 0
    granted_by: int = -1


class Index:
    """The index; safe for threads, and for processes that share the folder or were forked.

    Args:
        folder: the store's folder. Where it is not writable nothing is ever written.
        scan: yields a row for every entry's file, or for those of some entries.
    """

    def __init__(
        self, folder: StoreFolder, scan: Callable[[Iterable[str] | None], Iterator[Row]]
    ) -> None:
        self._folder, self._scan = folder, scan
        self._path = folder.path / INDEX / "entries.db"
        self._connection: sqlite3.Connection | None = None
        self._opened_by = self._inode = -1
        self._inherited: list[sqlite3.Connection] = []  # by a fork; not to be closed here
        self._lock = threading.RLock()
        self._dead: list[DeadWriters] = []  # found in the current transaction
        self.rebuilt = 0

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        with self._lock:
            if self._connection is not None:
                if self._opened_by == os.getpid():
                    self._connection.close()
                else:
                    self._inherited.append(self._connection)
            self._connection = None

    def record(self, report: Report, cap: int) -> tuple[int, int]:
        """Enter what was written and used, set bytes apart, and evict what is too much.

        Returns:
            Bytes that are set apart beyond those for the coming entry; how many entries left,
            whose files are removed here.
        """

        def work(db: sqlite3.Connection) -> tuple[int, int]:
            self._enter(db, report.wrote, same=report.granted_by == self._inode)
            touch(db, report.touched)
            room = needed = 0
            if report.coming is not None:
                needed = report.coming.size - self._replaced(db, report.coming)
                room = max(0, report.spare - needed)
            apart = (report.writer, needed + room)
            db.execute("INSERT OR REPLACE INTO writers VALUES (?, ?)", apart)
            db.execute("DELETE FROM writers WHERE bytes = 0")
            return room, self._evict(db, cap)

        return self._transaction(work)

    def recover(self, cap: int) -> int:
        """Enter what writers that died had written, and evict what is too much; how many left."""

        def work(db: sqlite3.Connection) -> int:
            self._recover(db)
            return self._evict(db, cap)

        return self._transaction(work)

    @property
    def found(self) -> int:
        """Inode of the database that lies in the folder *now*; -1 where there is none."""
        return self._found()

    def touch(self, touched: dict[str, int]) -> None:
        """Record uses: key → time (ns)."""
        self._transaction(lambda db: touch(db, touched))

    def forget(self, digest: str, reason: str, aside: tuple[str, int] | None = None) -> None:
        """Remove a row, remembering why; ``aside`` is what `StoreFolder.quarantine` returned."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM entries WHERE key = ?", (digest,))
            remember(db, digest, reason)
            if aside is not None:
                db.execute("INSERT OR REPLACE INTO quarantined VALUES (?, ?)", aside)

        self._transaction(work)

    def forget_lost(self, digest: str) -> None:
        """Remove the row of a file that is not there."""

        def work(db: sqlite3.Connection) -> None:
            if not self._folder.has(digest):
                db.execute("DELETE FROM entries WHERE key = ?", (digest,))
                remember(db, digest, "evicted")

        self._transaction(work)

    def histories(self, keys: Sequence[Key]) -> tuple[dict[str, str], list[Row]]:
        """Why keys are gone ("evicted", "corrupt"), if that is remembered; their pictures' rows."""
        return self._safely(
            lambda db: (
                fates(db, [key.digest for key in keys]),
                _rows(of_sources(db, sorted({key.source for key in keys}))),
            )
        )

    def rows(self) -> list[Row]:
        """All rows; the most recently used first."""
        query = "SELECT * FROM entries ORDER BY used DESC"
        return _rows(self._safely(lambda db: db.execute(query).fetchall()))

    def totals(self) -> tuple[int, int, int]:
        """Number of entries, their bytes, and the bytes in quarantine."""
        return self._safely(totals)

    def rebuild(self) -> None:
        """Make the index anew from the files."""
        with self._lock:
            self.close()
            with self._folder.locked(exclusive=True):
                self._replace()

    def _enter(self, db: sqlite3.Connection, rows: Sequence[Row], *, same: bool = False) -> None:
        """Enter rows, but not those whose files left meanwhile.

        Whoever removes a file remembers it, or makes the database anew. So while the database is
        the ``same`` one all the time, nobody need be asked about files that it does not remember.
        """
        known = db.execute("SELECT EXISTS (SELECT 1 FROM gone)").fetchone()[0]
        gone = fates(db, [row.key.digest for row in rows]) if known else {}
        doubted = gone if same else {row.key.digest for row in rows}
        there = [
            row for row in rows if row.key.digest not in doubted or self._folder.has(row.key.digest)
        ]
        enter(db, there)
        back = [(row.key.digest,) for row in there if row.key.digest in gone]
        db.executemany("DELETE FROM gone WHERE key = ?", back)

    def _replaced(self, db: sqlite3.Connection, coming: Row) -> int:
        """Bytes that an entry has now, at most those it will have; it counts as used."""
        key = coming.key.digest
        found = db.execute("SELECT size FROM entries WHERE key = ?", (key,)).fetchone()
        if found is None:
            return 0
        touch(db, {key: time.time_ns()})
        return min(coming.size, int(found[0]))

    def _recover(self, db: sqlite3.Connection) -> None:
        dead = self._folder.dead_writers()
        self._dead.append(dead)
        for digests in dead.wrote.values():
            self._enter(db, list(self._scan(digests)))
        living = ", ".join("?" * len(dead.living))
        db.execute(f"DELETE FROM writers WHERE name NOT IN ({living})", dead.living)

    def _evict(self, db: sqlite3.Connection, cap: int) -> int:
        if _taken(db) <= cap:
            return 0
        self._recover(db)
        for name, _ in db.execute("SELECT name, size FROM quarantined").fetchall():
            self._folder.remove_quarantined(name)
            db.execute("DELETE FROM quarantined WHERE name = ?", (name,))
        too_much = _taken(db) - cap
        evicted = []
        for key, freed in db.execute("SELECT key, size FROM entries ORDER BY used, key"):
            if too_much <= 0:
                break
            evicted.append(key)
            too_much -= freed
        for key in evicted:
            self._folder.remove(key)
            db.execute("DELETE FROM entries WHERE key = ?", (key,))
            remember(db, key, "evicted")
        return len(evicted)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` holding the only write transaction of all processes."""

        def run(db: sqlite3.Connection) -> T:
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
                for dead in self._dead:
                    self._folder.bury(dead)
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
            finally:
                while self._dead:
                    self._dead.pop().release()
            return result

        return self._safely(run)

    def _safely(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work``; where the database turns out to be damaged, rebuild it and run again."""
        with self._lock:
            try:
                return work(self._current())
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
                if code not in DAMAGE or not self._folder.writable:
                    raise
            self.close()
            with self._folder.locked(exclusive=True):
                if self._found() == self._inode:  # else another process has rebuilt it by now
                    self._replace()
            return work(self._current())

    def _current(self) -> sqlite3.Connection:
        """The connection to the database that lies in the folder now, opened by this process."""
        found = self._found()
        if self._connection is not None:
            if self._opened_by == os.getpid() and self._inode == found >= 0:
                return self._connection
            self.close()
        with self._folder.locked(exclusive=False):
            if self._found() >= 0:
                return self._open()
        if not self._folder.writable:
            raise sqlite3.OperationalError("the store has no index")
        with self._folder.locked(exclusive=True):
            if self._found() < 0:
                self._replace()
            return self._open()

    def _open(self) -> sqlite3.Connection:
        self._inode = self._found()
        self._connection = connect(self._path, writable=self._folder.writable)
        self._opened_by = os.getpid()
        return self._connection

    def _found(self) -> int:
        """Inode of the database in the folder; -1 where there is none, or a link."""
        try:
            status = os.lstat(self._path)
        except OSError:
            return -1
        return status.st_ino if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else -1

    def _replace(self) -> None:
        """Build a database aside and put its folder in place of the old one.

        The folder is replaced, not the file, because the old database's ``-wal`` must not meet the
        new one. Processes that have the old one open notice by its inode.
        """
        self.rebuilt += 1
        home = self._path.parent
        new, old = (home.with_name(f"{INDEX}.{word}-{os.getpid()}") for word in ("new", "old"))
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        new.mkdir(mode=0o700)
        with _closing(connect(new / self._path.name, writable=True, create=True)) as db:
            db.execute("BEGIN")
            enter(db, self._scan(None))
            found = list(self._folder.quarantined())
            db.executemany("INSERT OR REPLACE INTO quarantined VALUES (?, ?)", found)
            db.execute("COMMIT")
        with suppress(FileNotFoundError):
            home.rename(old)
        new.rename(home)
        shutil.rmtree(old, ignore_errors=True)


def _taken(db: sqlite3.Connection) -> int:
    """Bytes of all entries and of the quarantine, and those that are set apart."""
    _, size, aside = totals(db)
    apart = db.execute("SELECT total(bytes) FROM writers").fetchone()[0]
    return size + aside + int(apart)


def _rows(found: Iterable[tuple[str | int | float, ...]]) -> list[Row]:
    rows = []
    for values in found:
        with suppress(ValueError):  # a garbled row; its file will be counted again by a rebuild
            rows.append(row_of(values))
    return rows


@contextmanager
def _closing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield db
    finally:
        db.close()
