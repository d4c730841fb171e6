from __future__ import annotations

import errno
import logging
import os
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primelens.options import CacheOptions
from primelens.store import EmbeddingStore, Hit, Miss, StoredDtype
from primelens.store import folder as folder_module
from primelens.store.codec import stored

from .conftest import Opener, entry_path, files_in, keep, key_of, values_of


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_in(folder))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("memory_bytes", [0, 10**6])
def test_a_hit_gives_the_bits_that_the_miss_gave(
    opened: Opener, dtype: StoredDtype, memory_bytes: int
) -> None:
    store = opened(memory_bytes=memory_bytes)
    given = keep(store, 1, dtype=dtype)
    hit = store.get(key_of(1, dtype))
    later = opened().get(key_of(1, dtype))
    assert isinstance(hit, Hit)
    assert isinstance(later, Hit)
    assert (hit.tier, later.tier) == ("memory" if memory_bytes else "disk", "disk")
    assert given.tobytes() == hit.values.tobytes() == later.values.tobytes()
    assert given.tobytes() == stored(values_of(1), dtype).restore().tobytes()
    assert later.size == (640, 480)
    assert later.values.shape == (6, 16)


def test_what_a_store_returns_cannot_be_written_to(opened: Opener) -> None:
    store = opened(memory_bytes=10**6)
    given = keep(store, 1)
    for array in (given, store.get(key_of(1)).values, opened().get(key_of(1)).values):  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_what_was_used_least_recently_leaves_first(opened: Opener, folder: Path) -> None:
    size = _size_of_one(opened)
    store = opened(cap_bytes=3 * size + 10)
    for number in (1, 2, 3):
        keep(store, number)
    assert isinstance(store.get(key_of(1)), Hit)
    keep(store, 4)  # in place of 2
    assert store.get(key_of(2)) == Miss("evicted")
    assert isinstance(store.get(key_of(1)), Hit)
    store.close()  # records that 1 was used
    store = opened(cap_bytes=3 * size + 10)
    keep(store, 5)  # in place of 3
    found = [number for number in range(6) if isinstance(store.get(key_of(number)), Hit)]
    assert found == [1, 4, 5]
    assert store.totals() == (3, 3 * size, 0)
    assert bytes_in(folder) == 3 * size


def _size_of_one(opened: Opener) -> int:
    store = opened()
    keep(store, 1)
    size = store.totals()[1]
    store.clear()
    return size


def test_keeping_again_counts_once(opened: Opener, folder: Path) -> None:
    store = opened()
    for _ in range(3):
        keep(store, 1)
    assert store.totals() == (1, bytes_in(folder), 0)


def test_an_entry_larger_than_the_cap_is_not_kept(
    opened: Opener, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(cap_bytes=100)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(keep(store, 1), values_of(1))
    assert store.stats().not_kept == 1
    assert "exceeds the cap" in caplog.text
    assert files_in(folder) == []


def test_corrupt_files_are_put_aside_counted_and_leave_first(opened: Opener, folder: Path) -> None:
    size = _size_of_one(opened)
    store = opened(cap_bytes=3 * size + 10)
    for number in (1, 2, 3):
        keep(store, number)
    path = entry_path(folder, key_of(2))
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    assert store.get(key_of(2)) == Miss("corrupt")
    assert store.stats().corrupt == 1
    assert len(list((folder / "quarantine").iterdir())) == 1
    assert store.totals() == (2, 2 * size, size)
    keep(store, 4)
    assert store.totals() == (3, 3 * size, 0)
    assert list((folder / "quarantine").iterdir()) == []
    assert isinstance(store.get(key_of(1)), Hit)


def test_read_only_uses_and_writes_nothing(opened: Opener, folder: Path) -> None:
    writer = opened()
    keep(writer, 1)
    writer.close()
    entry = entry_path(folder, key_of(1)).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "index" not in p.parts}
    store = opened(mode="read-only")
    assert isinstance(store.get(key_of(1)), Hit)
    assert store.get(key_of(1, "int8")) == Miss("differs", ("dtype",))
    given = store.put(key_of(2, "fp16"), values_of(2), (4, 3))
    assert np.array_equal(given, stored(values_of(2), "fp16").restore())
    assert isinstance(store.get(key_of(2, "fp16")), Miss)
    store.close()
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "index" not in p.parts} == before
    entry_path(folder, key_of(1)).write_bytes(entry[:-1])
    store = opened(mode="read-only")
    assert store.get(key_of(1)) == Miss("corrupt")
    assert entry_path(folder, key_of(1)).exists()


@pytest.mark.parametrize("call", ["writev", "write", "rename", "open"])
def test_a_full_disk_costs_the_entry_and_is_noticed_once(
    opened: Opener,
    folder: Path,
    call: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = opened()
    keep(store, 1)
    real = getattr(os, call)

    def full(*arguments: Any, **options: Any) -> Any:
        if call == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(folder_module.os, call, full)
        for number in (2, 3, 4):
            assert np.array_equal(keep(store, number), values_of(number))
    assert store.stats().not_kept == 3
    assert [r.getMessage() for r in caplog.records if "No space left" in r.getMessage()] != []
    assert sum("No space left" in record.getMessage() for record in caplog.records) == 1
    assert isinstance(store.get(key_of(1)), Hit)
    assert isinstance(store.get(key_of(2)), Miss)
    assert store.totals() == (1, bytes_in(folder), 0)
    keep(store, 2)
    assert isinstance(store.get(key_of(2)), Hit)


def test_an_unreadable_folder_is_a_miss(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    keep(store, 1)

    def broken(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module.os, "read", broken)
        assert store.get(key_of(1)) == Miss("unreadable")
        assert store.get(key_of(1)) == Miss("unreadable")
    assert sum("Input/output" in record.getMessage() for record in caplog.records) == 1
    assert isinstance(store.get(key_of(1)), Hit)  # nothing was put aside


def test_an_entry_that_was_replaced_meanwhile_is_not_put_aside(
    opened: Opener, folder: Path
) -> None:
    store = opened()
    keep(store, 1)
    _, inode = store._folder.read(key_of(1).digest)
    path = entry_path(folder, key_of(1))
    whole = path.read_bytes()
    path.rename(folder.with_name("old"))
    path.write_bytes(whole)
    path.chmod(0o600)
    assert store._folder.quarantine(key_of(1).digest, inode) is None
    assert isinstance(store.get(key_of(1)), Hit)


def test_verify_finds_every_corrupt_file_and_mends_the_index(opened: Opener, folder: Path) -> None:
    store = opened()
    for number in range(6):
        keep(store, number)
    store.flush()
    entry_path(folder, key_of(0)).write_bytes(b"torn")
    entry_path(folder, key_of(1)).unlink()
    whole = entry_path(folder, key_of(2)).read_bytes()
    store._index.forget(key_of(2).digest, "evicted")
    entry_path(folder, key_of(2)).write_bytes(whole)
    report = store.verify()
    assert (report.checked, report.unlisted, report.lost) == (5, 1, 1)
    assert report.corrupt == [key_of(0).digest]
    again = store.verify()
    assert (again.checked, again.corrupt, again.unlisted, again.lost) == (4, [], 0, 0)
    assert store.totals()[0] == 4


def test_prune_and_clear(opened: Opener, folder: Path) -> None:
    store = opened(memory_bytes=10**6)
    for number in range(6):
        keep(store, number)
    one = store.totals()[1] // 6
    assert store.prune(2 * one) == 4
    assert store.totals()[:2] == (2, 2 * one)
    (folder / "tmp" / "left over").write_text("x")
    (folder / "quarantine" / "left over").write_text("x")
    assert store.clear() == 2
    assert files_in(folder) == []
    assert isinstance(store.get(key_of(5)), Miss)
    assert store.totals() == (0, 0, 0)


def test_a_batch_is_kept_as_its_parts_are(opened: Opener, folder: Path) -> None:
    store = opened()
    items = [(key_of(n, "int8"), values_of(n), (n, n)) for n in range(1, 5)]
    batch = store.put_all(items)
    for (key, values, size), given in zip(items, batch, strict=True):
        hit = store.get(key)
        assert isinstance(hit, Hit)
        assert hit.size == size
        assert np.array_equal(hit.values, given)
        assert np.array_equal(given, stored(values, "int8").restore())
    assert store.put_all([]) == []


def test_uses_are_recorded_in_batches(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    keep(store, 1)
    store.flush()
    told: list[int] = []
    record = store._index.record
    monkeypatch.setattr(
        store._index, "record", lambda r, cap: told.append(len(r.touched)) or record(r, cap)
    )
    for _ in range(1000):
        store.get(key_of(1))
    assert told == []  # one key: there is one use to record
    assert [store._ledger.use(key_of(n).digest) for n in range(256)] == [False] * 255 + [True]
    store.flush()
    assert told == [256]


def test_entries_are_told_to_the_index_in_batches(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = opened(), opened()
    told: list[int] = []
    record = store._index.record
    monkeypatch.setattr(
        store._index, "record", lambda r, cap: told.append(len(r.wrote)) or record(r, cap)
    )
    for number in range(600):
        keep(store, number)
    assert told == [0, 512]
    assert other.totals()[0] == 512
    assert isinstance(other.get(key_of(599)), Hit)  # a file is found without the index
    assert store.get(key_of(599, "int8")) == Miss("differs", ("dtype",))  # not told, but known
    store.close()
    assert told == [0, 512, 88]
    assert other.totals() == (600, bytes_in(folder), 0)


def _keep_and_die(folder: Path, numbers: range) -> None:
    """In another process, which is killed before it tells the index."""
    child = os.fork()
    if child == 0:
        store = EmbeddingStore(CacheOptions(folder, memory_bytes=0))
        for number in numbers:
            keep(store, number)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_a_killed_process_wrote_is_entered_by_the_next(opened: Opener, folder: Path) -> None:
    _keep_and_die(folder, range(5))
    with sqlite3.connect(folder / "index" / "entries.db") as index:
        assert index.execute("SELECT count(*) FROM entries").fetchone() == (0,)
        assert index.execute("SELECT count(*) FROM writers").fetchone() == (1,)
    index.close()
    entry_path(folder, key_of(3)).unlink()  # and one that it was about to write
    store = opened()
    assert store.totals() == (4, bytes_in(folder), 0)
    assert {row.key for row in store.rows()} == {key_of(n) for n in (0, 1, 2, 4)}
    assert list((folder / "writers").iterdir()) == []
    report = store.verify()
    assert (report.corrupt, report.unlisted, report.lost) == ([], 0, 0)


def test_a_running_process_finds_what_a_killed_one_wrote_when_it_needs_room(
    opened: Opener, folder: Path
) -> None:
    size = _size_of_one(opened)
    store = opened(cap_bytes=10 * size)
    keep(store, 100)
    _keep_and_die(folder, range(8))  # whose cap is larger: 16 MiB are set apart for it
    keep(store, 101)
    assert store.totals()[0] == 10
    keep(store, 102)  # in place of 100
    assert store.get(key_of(100)) == Miss("evicted")
    assert bytes_in(folder) == 10 * size


def test_threads_share_a_store(opened: Opener) -> None:
    store = opened(cap_bytes=20_000, memory_bytes=5_000)
    wrong: list[object] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in random.integers(0, 40, 60).tolist():
            found = store.get(key_of(number))
            if isinstance(found, Miss):
                keep(store, number)
            elif not np.array_equal(found.values, values_of(number)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.stats().not_kept == 0
    assert store.totals()[1] <= 20_000


def test_a_forked_process_uses_a_connection_of_its_own(opened: Opener) -> None:
    store = opened()
    keep(store, 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            keep(store, 2)
            code = 0 if isinstance(store.get(key_of(1)), Hit) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    keep(store, 3)
    assert store.totals()[0] == 3
    assert isinstance(store.get(key_of(2)), Hit)


def test_closing_twice_is_harmless(opened: Opener) -> None:
    with opened() as store:
        keep(store, 1)
    store.close()
    assert isinstance(opened().get(key_of(1)), Hit)


@pytest.mark.parametrize("values", [np.zeros(3), np.full((2, 2), np.nan, np.float32)])
def test_values_that_cannot_be_kept_are_refused(opened: Opener, values: Any) -> None:
    with pytest.raises(ValueError, match="values are"):
        opened().put(key_of(1), values, (1, 1))
