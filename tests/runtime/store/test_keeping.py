"""Entries that wait to be written: found meanwhile, written in the end, noted before that."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primelens.store import Hit, Miss
from primelens.store import folder as folder_module
from primelens.store import keeping as keeping_module
from primelens.store import writers as writers_module
from primelens.store.codec import stored

from .conftest import Opener, entry_path, keep, key_of, values_of


def test_what_is_kept_later_is_found_and_counted_at_once(opened: Opener, folder: Path) -> None:
    store = opened(cap_bytes=10**7)
    items = [(key_of(n, "fp16"), values_of(n), (n, n)) for n in range(1, 200)]
    for start in range(0, len(items), 40):  # more than the queue holds
        given = store.put_all(items[start : start + 40], later=True)
        for (key, _, _), values in zip(items[start : start + 40], given, strict=True):
            hit = store.get(key)
            assert isinstance(hit, Hit)
            assert np.array_equal(hit.values, values)
    assert store.stats().kept == 199
    row = next(row for row in store.rows() if row.key == key_of(7, "fp16"))
    assert row.relative_error == stored(values_of(7), "fp16").error(values_of(7))[1] > 0
    keep(store, 7, dtype="fp16")
    store.put_all([(key_of(300), values_of(300), (1, 1))], later=True)
    assert isinstance(opened().get(key_of(300)), Hit)  # another store of this process waits for it
    store.put_all([(key_of(301), values_of(301), (1, 1))], later=True)
    store.close()
    assert entry_path(folder, key_of(301)).exists()


def test_what_cannot_be_kept_later_is_noticed(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(folder_module.os, "writev", full)
        store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(3)], later=True)
        assert store.stats().not_kept == 3
    assert "No space left" in caplog.text
    assert store.totals() == (0, 0, 0)
    store.put_all([(key_of(1), values_of(1), (1, 1))], later=True)
    assert store.totals()[0] == 1


def test_a_process_that_is_forked_while_entries_are_queued(opened: Opener) -> None:
    store = opened()
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(60)], later=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.put_all([(key_of(100), values_of(100), (1, 1))], later=True)
            code = 0 if isinstance(store.get(key_of(100)), Hit) else 2
            store.drain()
        finally:
            os._exit(code)
    store.put_all([(key_of(101), values_of(101), (1, 1))], later=True)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.totals()[0] == 62


def test_notes_that_were_cut_off_cost_the_entries(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that dies leaves nothing in the folder that it has not noted."""
    store = opened()
    keep(store, 1)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(writers_module.os, "write", lambda file, data: write(file, data[:40]))
        keep(store, 2)
    assert store.stats().not_kept == 1
    assert isinstance(store.get(key_of(2)), Miss)
    keep(store, 3)
    assert store.totals()[0] == 2


def test_what_waits_is_written_by_many_or_after_a_while(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping_module, "_SECONDS", 0.05)
    store = opened()
    ends = threading.Event()
    written: list[int] = []
    write = store._ledger.write

    def noted(entries: Any, notice: Any) -> tuple[int, int]:
        result = write(entries, notice)
        written.append(len(entries))
        ends.set()
        return result

    monkeypatch.setattr(store._ledger, "write", noted)
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(3)], later=True)
    assert ends.wait(30)  # by the thread
    assert written == [3]
    monkeypatch.setattr(keeping_module, "_SECONDS", 1000.0)
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(10, 150)], later=True)
    assert written == [3, 128]
    assert not entry_path(folder, key_of(149)).exists()
    assert isinstance(store.get(key_of(149)), Hit)
    large = np.ones((2**12, 2**10), np.float32)
    store.put_all([(key_of(n), large, (1, 1)) for n in range(200, 203)], later=True)
    assert written == [3, 128, 15]
    store.close()
    assert entry_path(folder, key_of(149)).exists()


def test_enough_is_written_by_the_thread_when_pictures_are_decoded(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping_module, "_SECONDS", 1000.0)
    store = opened()
    written: list[tuple[int, bool]] = []
    ends = threading.Event()
    write = store._ledger.write

    def noted(entries: Any, notice: Any) -> tuple[int, int]:
        result = write(entries, notice)
        written.append((len(entries), threading.current_thread() is threading.main_thread()))
        ends.set()
        return result

    monkeypatch.setattr(store._ledger, "write", noted)
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(7)], later=True)
    store.write_meanwhile()  # too few
    store.put_all([(key_of(15), values_of(15), (1, 1))], later=True)
    assert not ends.wait(0.2)
    store.write_meanwhile()
    assert ends.wait(30)
    assert written == [(8, False)]
    large = np.ones((2**9, 2**9), np.float32)
    ends.clear()
    store.put_all([(key_of(20), large, (1, 1))], later=True)
    store.write_meanwhile()
    assert ends.wait(30)
    assert written == [(8, False), (1, False)]
    assert entry_path(folder, key_of(20)).exists()


def noted_writes(store: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries are written each time, from now on."""
    written: list[int] = []
    write = store._ledger.write

    def noted(entries: Any, notice: Any) -> tuple[int, int]:
        written.append(len(entries))
        return write(entries, notice)

    monkeypatch.setattr(store._ledger, "write", noted)
    return written


def test_a_reader_without_a_picture_writes_until_it_is_told_to_stop(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping_module, "_SECONDS", 1000.0)
    store = opened()
    keep(store, 0)  # from now on there is room that the index has granted
    written = noted_writes(store, monkeypatch)
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(1, 11)], later=True)
    stop = threading.Event()
    stop.set()
    store.write_until(stop)
    assert written == []
    stop.clear()
    tell = store._ledger._tell
    monkeypatch.setattr(store._ledger, "_tell", lambda _: pytest.fail("it takes too long"))
    store.write_until(stop)
    assert written == [4, 4, 2]
    assert entry_path(folder, key_of(10)).exists()

    def stops(entries: Any, notice: Any) -> tuple[int, int]:
        stop.set()
        written.append(len(entries))
        return len(entries), 0

    monkeypatch.setattr(store._ledger, "write", stops)
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(11, 21)], later=True)
    store.write_until(stop)
    assert written == [4, 4, 2, 4]
    monkeypatch.setattr(store._ledger, "_tell", tell)


def test_a_store_that_is_behind_says_so(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping_module, "_SECONDS", 1000.0)
    store = opened()
    keep(store, 0)
    assert not store.is_behind()
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(1, 48)], later=True)
    assert not store.is_behind()
    store.put(key_of(48), values_of(48), (1, 1))  # after the others
    store.put_all([(key_of(n), values_of(n), (1, 1)) for n in range(50, 98)], later=True)
    assert store.is_behind()
    store.write_until(None)
    assert not store.is_behind()
    assert store.totals()[0] == 97
    monkeypatch.setattr(store._ledger, "_late", lambda: True)  # the index is to be told
    assert not store.is_behind()  # but nothing needs it
    written = noted_writes(store, monkeypatch)
    store.put_all([(key_of(99), values_of(99), (1, 1))], later=True)
    assert store.is_behind()
    store.write_until(threading.Event())
    assert written == []
    store.write_until(None)
    assert written == [1]


def test_who_writes_for_others_tells_the_log_of_a_mistake(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping_module, "_SECONDS", 1000.0)
    store = opened()
    keep(store, 0)
    store.put_all([(key_of(1), values_of(1), (1, 1))], later=True)
    with monkeypatch.context() as patch:
        patch.setattr(store._ledger, "write", lambda *_: 1 // 0)
        store.write_until(threading.Event())
    assert "could not be written" in caplog.text
    store.write_until(threading.Event())
    assert isinstance(store.get(key_of(0)), Hit)
