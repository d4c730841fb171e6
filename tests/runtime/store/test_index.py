"""The index may be lost, garbled or replaced at any moment; entries outlive it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from primelens.store import EmbeddingStore, Hit, Miss
from primelens.store import database as database_module

from .conftest import Opener, entry_path, files_in, key_of, values_of

COUNT = 8
FOLDERS = ["index", "lock", "quarantine", "tmp", "v1", "writers"]


def fill(store: EmbeddingStore, count: int = COUNT) -> None:
    for number in range(count):
        store.put(key_of(number), values_of(number), (4, 3))


def size_of(store: EmbeddingStore) -> int:
    return store.totals()[1]


def database(folder: Path) -> Path:
    return folder / "index" / "entries.db"


def drop_a_table(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE entries")
    db.close()


def empty_the_totals(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM total")
    db.close()


def another_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def garbage_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200:] = np.random.default_rng(0).bytes(len(content) - 200)
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "overwritten with text": lambda path: path.write_text("no database at all " * 500),
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbled": garbage_in_the_middle,
    "a link": lambda path: (path.rename(path.with_name("x")), path.symlink_to(path.with_name("x"))),
    "deleted": lambda path: path.unlink(),
    "its folder deleted": lambda path: shutil.rmtree(path.parent),
    "without a table": drop_a_table,
    "without totals": empty_the_totals,
    "of another version": another_version,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_rebuilt_from_the_files(
    opened: Opener, folder: Path, damage: str
) -> None:
    store = opened()
    fill(store)
    before = store.totals()
    store.close()
    for left in ("entries.db-wal", "entries.db-shm"):
        (folder / "index" / left).unlink(missing_ok=True)
    DAMAGE[damage](database(folder))
    store = opened()
    assert store.totals() == before
    assert {row.key for row in store.rows()} == {key_of(number) for number in range(COUNT)}
    assert store.stats().rebuilt == 1
    assert all(isinstance(store.get(key_of(number)), Hit) for number in range(COUNT))
    fill(store, COUNT + 2)
    assert store.totals()[0] == COUNT + 2
    assert sorted(p.name for p in folder.iterdir()) == FOLDERS


def test_an_index_that_is_damaged_while_open_is_rebuilt(opened: Opener, folder: Path) -> None:
    store = opened()
    fill(store)
    shutil.rmtree(folder / "index")
    fill(store, COUNT + 1)
    assert store.totals()[0] == COUNT + 1
    assert store.stats().not_kept == 0


def test_processes_that_share_a_folder_follow_a_rebuilt_index(opened: Opener) -> None:
    one, two = opened(), opened()
    fill(one, 3)
    fill(two, 5)
    one.rebuild_index()
    two.put(key_of(9), values_of(9), (4, 3))
    two.flush()
    assert one.totals() == two.totals()
    assert one.totals()[0] == 6


def test_files_that_another_removed_before_the_index_was_told(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened()
    fill(one, 1)  # the index sets bytes apart
    two = opened()
    asked: list[str] = []
    has = one._folder.has

    def noted(digest: str) -> bool:
        asked.append(digest)
        return has(digest)

    monkeypatch.setattr(one._folder, "has", noted)
    fill(one, 4)
    one.flush()
    assert asked == []  # nobody removed anything
    assert one.totals()[0] == 4
    one.put(key_of(4), values_of(4), (4, 3))
    one.put(key_of(5), values_of(5), (4, 3))
    path = entry_path(folder, key_of(4))
    path.write_bytes(path.read_bytes()[:-1])
    assert two.get(key_of(4)).reason == "corrupt"  # and is put aside
    one.flush()
    assert asked == [key_of(4).digest]  # which is all that was removed
    assert {row.key for row in two.rows()} == {key_of(number) for number in (0, 1, 2, 3, 5)}
    one.put(key_of(6), values_of(6), (4, 3))
    two.clear()  # the index is made anew
    one.put(key_of(7), values_of(7), (4, 3))
    one.flush()
    assert {row.key for row in two.rows()} == {key_of(7)}
    assert not two.verify().lost


def test_a_rebuilt_index_knows_recency_from_the_files(opened: Opener, folder: Path) -> None:
    store = opened()
    fill(store)
    for number in range(COUNT):  # the higher the number, the older
        os.utime(entry_path(folder, key_of(number)), (10_000 - number, 10_000 - number))
    store.rebuild_index()
    assert [row.key for row in store.rows()] == [key_of(number) for number in range(COUNT)]
    per_entry = size_of(store) // COUNT
    store.prune(3 * per_entry)
    found = [number for number in range(COUNT) if isinstance(store.get(key_of(number)), Hit)]
    assert found == [0, 1, 2]


def test_rebuilding_puts_aside_what_has_no_sensible_header(opened: Opener, folder: Path) -> None:
    store = opened()
    fill(store)
    entry_path(folder, key_of(1)).write_bytes(b"")
    entry_path(folder, key_of(2)).write_bytes(b"\0" * 600)
    shutil.copy(entry_path(folder, key_of(3)), entry_path(folder, key_of(4)))
    store.rebuild_index()
    entries, size, aside = store.totals()
    assert entries == COUNT - 3
    assert size + aside == sum(path.stat().st_size for path in files_in(folder))
    assert store.stats().corrupt == 3


def test_a_store_without_an_index_can_be_read(opened: Opener, folder: Path) -> None:
    writer = opened()
    fill(writer)
    writer.close()
    shutil.rmtree(folder / "index")
    (folder / "lock").unlink()
    store = opened(mode="read-only")
    found = store.get(key_of(1))
    assert isinstance(found, Hit)
    assert np.array_equal(found.values, values_of(1))
    assert store.get(key_of(99)) == Miss("new")
    assert not (folder / "index").exists()


def test_a_locked_index_costs_the_entry_and_nothing_else(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.01)
    store = opened(cap_bytes=50_000)  # so small that every entry is a transaction of its own
    fill(store)
    blocker = sqlite3.connect(database(folder), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    restored = store.put(key_of(50), values_of(50), (4, 3))
    assert np.array_equal(restored, values_of(50))
    assert store.stats().not_kept == 1
    assert isinstance(store.get(key_of(1)), Hit)
    blocker.execute("ROLLBACK")
    blocker.close()
    store.put(key_of(50), values_of(50), (4, 3))
    assert isinstance(store.get(key_of(50)), Hit)
