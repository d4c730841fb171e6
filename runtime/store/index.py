"""The index of a store: which entry was used when, and how large it is.

A SQLite database in WAL mode. It decides what is evicted and says why something is missing; what an
entry *contains* is the business of its file alone, so a lost, stale or garbled index costs
recency, never correctness. It is rebuilt from the files where it cannot be read.

Invariants that let processes die at any moment:

* an entry's row is committed before its file gets its name, and its file is removed before the row
  is, so the sum over the rows is never below the sum over the files;
* a writer that finds its row gone after the renaming (evicted or rebuilt meanwhile) takes its file
  away again and starts over, see `primelens.store.store`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from primelens.store.folder import INDEX, StoreFolder
from primelens.store.key import EntryKey, Frame, StoredDtype

__all__ = ["Index", "Row"]

T = TypeVar("T")

_VERSION = 1
_BUSY_SECONDS = 30.0
_REMEMBERED = 100_000  # keys that are gone, for saying why
_PENDING_NS = 60 * 10**9  # a row without a file may be a writer's that is about to rename

_SCHEMA = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, size INTEGER NOT NULL, used INTEGER NOT NULL,
    tower TEXT NOT NULL, tap TEXT NOT NULL, variant TEXT NOT NULL, dtype TEXT NOT NULL,
    source TEXT NOT NULL, frame TEXT NOT NULL, relative_error REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON entries (used);
CREATE INDEX by_source ON entries (source);
CREATE TABLE quarantined (name TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE gone (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, reason TEXT NOT NULL);
CREATE TABLE total (entries INTEGER NOT NULL, bytes INTEGER NOT NULL, aside INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0, 0);
CREATE TRIGGER entered AFTER INSERT ON entries BEGIN
    UPDATE total SET entries = entries + 1, bytes = bytes + new.size; END;
CREATE TRIGGER left AFTER DELETE ON entries BEGIN
    UPDATE total SET entries = entries - 1, bytes = bytes - old.size; END;
CREATE TRIGGER resized AFTER UPDATE OF size ON entries BEGIN
    UPDATE total SET bytes = bytes + new.size - old.size; END;
CREATE TRIGGER aside AFTER INSERT ON quarantined BEGIN
    UPDATE total SET aside = aside + new.size; END;
CREATE TRIGGER destroyed AFTER DELETE ON quarantined BEGIN
    UPDATE total SET aside = aside - old.size; END;
"""

_INSERT = """
INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET size = excluded.size, used = excluded.used
"""

# What a damaged or replaced database answers with; anything else (busy, disk full) is passed on.
_DAMAGE = {
    sqlite3.SQLITE_ERROR,  # "no such table"
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,  # its file was moved away
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_FORMAT,
}


@dataclass(frozen=True)
class Row:
    """What the index knows of an entry: key, bytes of its file, time of last use (ns), error."""

    key: EntryKey
    size: int
    used: int
    relative_error: float = 0.0


class Index:
    """The index; safe for threads, and for processes that share the folder or were forked.

    Args:
        folder: the store's folder. Where it is not writable nothing is ever written.
        scan: yields a row for every entry's file, for rebuilding.
    """

    def __init__(self, folder: StoreFolder, scan: Callable[[], Iterator[Row]]) -> None:
        self._folder, self._scan = folder, scan
        self._path = folder.path / INDEX / "entries.db"
        self._connection: sqlite3.Connection | None = None
        self._opened_by = self._inode = -1
        self._inherited: list[sqlite3.Connection] = []  # by a fork; not to be closed here
        self._lock = threading.RLock()
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

    def admit(self, rows: Sequence[Row], touched: dict[str, int], cap: int) -> int:
        """Enter rows and evict what is least recently used until all fit; returns how many left.

        The rows count as used now. The evicted entries' files are removed here. ``touched`` maps
        keys to their last use.
        """

        def work(db: sqlite3.Connection) -> int:
            _touch(db, touched)
            # Now, not when the wait for the lock began: it must not be the oldest at once.
            fresh = [replace(row, used=time.time_ns()) for row in rows]
            db.executemany(_INSERT, [_values(row) for row in fresh])
            db.executemany("DELETE FROM gone WHERE key = ?", [(r.key.digest,) for r in rows])
            return self._evict(db, cap)

        return self._transaction(work)

    def holds(self, digest: str) -> bool:
        """Whether there is a row; looks at the index that the folder has *now*."""
        query = "SELECT 1 FROM entries WHERE key = ?"
        return self._safely(lambda db: db.execute(query, (digest,)).fetchone() is not None)

    def touch(self, touched: dict[str, int]) -> None:
        """Record uses: key → time (ns)."""
        self._transaction(lambda db: _touch(db, touched))

    def forget(self, digest: str, reason: str, aside: tuple[str, int] | None = None) -> None:
        """Remove a row, remembering why; ``aside`` is what `StoreFolder.quarantine` returned."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM entries WHERE key = ?", (digest,))
            _remember(db, digest, reason)
            if aside is not None:
                db.execute("INSERT OR REPLACE INTO quarantined VALUES (?, ?)", aside)

        self._transaction(work)

    def withdraw(self, digests: Sequence[str]) -> None:
        """Remove the rows of entries that could not be written and have no file."""

        def work(db: sqlite3.Connection) -> None:
            for digest in digests:
                if not self._folder.has(digest):
                    db.execute("DELETE FROM entries WHERE key = ?", (digest,))

        self._transaction(work)

    def forget_lost(self, digest: str) -> None:
        """Remove the row of a file that is not there, unless its writer may be about to name it."""

        def work(db: sqlite3.Connection) -> None:
            before = time.time_ns() - _PENDING_NS
            query = "DELETE FROM entries WHERE key = ? AND used < ?"
            if db.execute(query, (digest, before)).rowcount:
                _remember(db, digest, "evicted")

        self._transaction(work)

    def evict(self, cap: int) -> int:
        """Evict until at most ``cap`` bytes are kept; returns how many entries left."""
        return self._transaction(lambda db: self._evict(db, cap))

    def fate(self, digest: str) -> str | None:
        """Why a key is gone, if that is remembered: "evicted" or "corrupt"."""
        query = "SELECT reason FROM gone WHERE key = ?"
        found = self._safely(lambda db: db.execute(query, (digest,)).fetchone())
        return None if found is None else str(found[0])

    def rows(self, source: str | None = None) -> list[Row]:
        """All rows, or those of one picture; the most recently used first."""
        where = "" if source is None else "WHERE source = ? "
        query = f"SELECT * FROM entries {where}ORDER BY used DESC"
        values = () if source is None else (source,)
        found = self._safely(lambda db: db.execute(query, values).fetchall())
        rows = []
        for values in found:
            with suppress(ValueError):  # a garbled row; its file will be counted again by a rebuild
                rows.append(_row(values))
        return rows

    def totals(self) -> tuple[int, int, int]:
        """Number of entries, their bytes, and the bytes in quarantine."""
        return self._safely(_totals)

    def rebuild(self) -> None:
        """Make the index anew from the files."""
        with self._lock:
            self.close()
            with self._folder.locked(exclusive=True):
                self._replace()

    def _evict(self, db: sqlite3.Connection, cap: int) -> int:
        _, size, aside = _totals(db)
        if size + aside <= cap:
            return 0
        self._folder.sweep()
        for name, freed in db.execute("SELECT name, size FROM quarantined").fetchall():
            self._folder.remove_quarantined(name)
            db.execute("DELETE FROM quarantined WHERE name = ?", (name,))
            aside -= freed
        evicted = []
        for key, freed in db.execute("SELECT key, size FROM entries ORDER BY used, key"):
            if size + aside <= cap:
                break
            evicted.append(key)
            size -= freed
        for key in evicted:
            self._folder.remove(key)
            db.execute("DELETE FROM entries WHERE key = ?", (key,))
            _remember(db, key, "evicted")
        return len(evicted)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` holding the only write transaction of all processes."""

        def run(db: sqlite3.Connection) -> T:
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
            return result

        return self._safely(run)

    def _safely(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work``; where the database turns out to be damaged, rebuild it and run again."""
        with self._lock:
            try:
                return work(self._current())
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
                if code not in _DAMAGE or not self._folder.writable:
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
        self._connection = _connect(self._path, writable=self._folder.writable)
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
        with _closing(_connect(new / self._path.name, writable=True, create=True)) as db:
            db.execute("BEGIN")
            db.executemany(_INSERT, (_values(row) for row in self._scan()))
            found = list(self._folder.quarantined())
            db.executemany("INSERT OR REPLACE INTO quarantined VALUES (?, ?)", found)
            db.execute("COMMIT")
        with suppress(FileNotFoundError):
            home.rename(old)
        new.rename(home)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _closing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield db
    finally:
        db.close()


def _connect(path: Path, *, writable: bool, create: bool = False) -> sqlite3.Connection:
    mode = "rwc" if create else "rw" if writable else "ro"
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if create:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        if writable:
            db.execute("PRAGMA synchronous = OFF")
        if db.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            raise sqlite3.DatabaseError("the index has another version")
    except BaseException:
        db.close()
        raise
    return db


def _totals(db: sqlite3.Connection) -> tuple[int, int, int]:
    found = db.execute("SELECT entries, bytes, aside FROM total").fetchone()
    if found is None:
        raise sqlite3.DatabaseError("the index has lost its totals")
    entries, size, aside = found
    return int(entries), int(size), int(aside)


def _touch(db: sqlite3.Connection, touched: dict[str, int]) -> None:
    db.executemany(
        "UPDATE entries SET used = max(used, ?) WHERE key = ?",
        [(used, key) for key, used in touched.items()],
    )


def _remember(db: sqlite3.Connection, digest: str, reason: str) -> None:
    query = "INSERT OR REPLACE INTO gone (key, reason) VALUES (?, ?)"
    newest = db.execute(query, (digest, reason)).lastrowid or 0
    db.execute("DELETE FROM gone WHERE id <= ?", (newest - _REMEMBERED,))


def _values(row: Row) -> tuple[str | int | float, ...]:
    key, frame = row.key, row.key.frame
    text = "" if frame is None else f"{frame.index} {frame.timestamp_ns}"
    parts = (key.tower, key.tap, key.variant, key.dtype, key.source, text)
    return (key.digest, row.size, row.used, *parts, row.relative_error)


def _row(values: tuple[str | int | float, ...]) -> Row:
    _, size, used, tower, tap, variant, dtype, source, frame, error = values
    numbers = [int(part) for part in str(frame).split()]
    kind: StoredDtype = dtype  # type: ignore[assignment]  # EntryKey checks it
    key = EntryKey(
        tower=str(tower),
        variant=str(variant),
        dtype=kind,
        source=str(source),
        frame=Frame(numbers[0], numbers[1]) if numbers else None,
        tap=str(tap),
    )
    return Row(key, int(size), int(used), float(error))
