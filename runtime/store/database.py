"""The SQLite side of a store's index: its tables, and rows in and out of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from primelens.store.key import EntryKey, Frame, Key, StoredDtype

__all__ = [
    "DAMAGE",
    "Row",
    "connect",
    "enter",
    "fates",
    "of_sources",
    "remember",
    "row_of",
    "totals",
    "touch",
]

_VERSION = 2
_BUSY_SECONDS = 30.0
_REMEMBERED = 100_000  # keys that are gone, for saying why

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
CREATE TABLE writers (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE total (entries INTEGER NOT NULL, bytes INTEGER NOT NULL, aside INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0, 0);
CREATE TRIGGER left AFTER DELETE ON entries BEGIN
    UPDATE total SET entries = entries - 1, bytes = bytes - old.size; END;
CREATE TRIGGER aside AFTER INSERT ON quarantined BEGIN
    UPDATE total SET aside = aside + new.size; END;
CREATE TRIGGER destroyed AFTER DELETE ON quarantined BEGIN
    UPDATE total SET aside = aside - old.size; END;
"""

_INSERT = """
INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET size = excluded.size, used = excluded.used
"""
_AT_ONCE = 500  # fewer than SQLite's variables

# What a damaged or replaced database answers with; anything else (busy, disk full) is passed on.
DAMAGE = {
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


class Row(NamedTuple):
    """What the index knows of an entry: key, bytes of its file, time of last use (ns), error."""

    key: Key
    size: int
    used: int
    relative_error: float = 0.0


def connect(path: Path, *, writable: bool, create: bool = False) -> sqlite3.Connection:
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


def totals(db: sqlite3.Connection) -> tuple[int, int, int]:
    found = db.execute("SELECT entries, bytes, aside FROM total").fetchone()
    if found is None:
        raise sqlite3.DatabaseError("the index has lost its totals")
    entries, size, aside = found
    return int(entries), int(size), int(aside)


def enter(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Insert rows, or replace them. The totals follow by sums: a trigger doubles the cost."""
    iterator = iter(rows)
    while some := list({row.key.digest: row for row in islice(iterator, _AT_ONCE)}.values()):
        keys = [row.key.digest for row in some]
        known = f"WHERE key IN ({', '.join('?' * len(keys))})"
        had, bytes_had = db.execute(
            f"SELECT count(*), total(size) FROM entries {known}", keys
        ).fetchone()
        db.executemany(_INSERT, [_values(row) for row in some])
        size = sum(row.size for row in some)
        db.execute(
            "UPDATE total SET entries = entries + ?, bytes = bytes + ?",
            (len(some) - had, size - int(bytes_had)),
        )


def touch(db: sqlite3.Connection, touched: Mapping[str, int]) -> None:
    db.executemany(
        "UPDATE entries SET used = max(used, ?) WHERE key = ?",
        [(used, key) for key, used in touched.items()],
    )


def remember(db: sqlite3.Connection, digest: str, reason: str) -> None:
    query = "INSERT OR REPLACE INTO gone (key, reason) VALUES (?, ?)"
    newest = db.execute(query, (digest, reason)).lastrowid or 0
    db.execute("DELETE FROM gone WHERE id <= ?", (newest - _REMEMBERED,))


def fates(db: sqlite3.Connection, digests: Sequence[str]) -> dict[str, str]:
    """Of keys that are gone, why."""
    found = _of(db, "SELECT key, reason FROM gone WHERE key IN", digests)
    return {str(key): str(reason) for key, reason in found}


def of_sources(
    db: sqlite3.Connection, sources: Sequence[str]
) -> list[tuple[str | int | float, ...]]:
    """Rows of pictures."""
    return _of(db, "SELECT * FROM entries WHERE source IN", sources)


def _of(
    db: sqlite3.Connection, query: str, chosen: Sequence[str]
) -> list[tuple[str | int | float, ...]]:
    found: list[tuple[str | int | float, ...]] = []
    for start in range(0, len(chosen), _AT_ONCE):
        some = chosen[start : start + _AT_ONCE]
        found += db.execute(f"{query} ({', '.join('?' * len(some))})", some).fetchall()
    return found


def _values(row: Row) -> tuple[str | int | float, ...]:
    key, frame = row.key, row.key.frame
    text = "" if frame is None else f"{frame.index} {frame.timestamp_ns}"
    parts = (key.tower, key.tap, key.variant, key.dtype, key.source, text)
    return (key.digest, row.size, row.used, *parts, row.relative_error)


def row_of(values: tuple[str | int | float, ...]) -> Row:
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
