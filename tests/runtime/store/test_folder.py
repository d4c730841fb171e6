"""Who may use a store's folder, and that nothing in it is followed elsewhere."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from primelens.errors import StoreError
from primelens.options import CacheOptions
from primelens.store import EmbeddingStore, Hit, Miss
from primelens.store import folder as folder_module

from .conftest import Opener, entry_path, key_of, values_of


def test_everything_is_made_for_the_user_alone(opened: Opener, folder: Path) -> None:
    before = os.umask(0)
    try:
        store = opened()
        store.put(key_of(1), values_of(1), (4, 3))
    finally:
        os.umask(before)
    made = [folder, *folder.rglob("*")]
    assert len(made) > 8
    ours = [path for path in made if path.parent.name != "index"]  # SQLite's; in a folder of ours
    assert {stat.S_IMODE(p.stat().st_mode) for p in ours if p.is_dir()} == {0o700}
    assert {stat.S_IMODE(p.stat().st_mode) for p in ours if p.is_file()} == {0o600}


@pytest.mark.skipif(sys.platform != "linux", reason="a flag of Linux")
def test_a_new_folder_is_marked_for_the_file_system(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"now": 0x80000}

    def ioctl(_: int, request: int, content: Any) -> int:
        if request == 0x80086601:
            content[0] = flags["now"]
        else:
            flags["now"] = content[0]
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    opened()
    assert flags["now"] == 0x80000 | 0x20000
    flags["now"] = 0
    opened()  # it is somebody's folder now, flags and all
    assert flags["now"] == 0

    def unknown(*_: Any) -> int:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", unknown)
    store = EmbeddingStore(CacheOptions(folder.with_name("other file system")))
    store.put(key_of(1), values_of(1), (4, 3))
    store.close()


@pytest.mark.parametrize("mode", ["read-write", "read-only"])
@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(
    opened: Opener, folder: Path, bits: int, mode: str
) -> None:
    opened().close()
    folder.chmod(bits)
    with pytest.raises(StoreError, match=r"Others may write .*chmod 700"):
        opened(mode=mode)
    folder.chmod(0o755)
    opened(mode=mode)


def test_somebody_elses_folder_is_refused(
    opened: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().close()
    monkeypatch.setattr(folder_module.os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(StoreError, match="belongs to user"):
        opened()


def test_a_link_to_a_folder_is_refused(opened: Opener, folder: Path) -> None:
    real = folder.with_name("real")
    real.mkdir(mode=0o700)
    folder.symlink_to(real)
    for mode in ("read-write", "read-only"):
        with pytest.raises(StoreError, match="symbolic link"):
            opened(mode=mode)
    assert list(real.iterdir()) == []


def test_a_file_in_the_folders_place_is_refused(opened: Opener, folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        opened()


def test_read_only_makes_no_folder(opened: Opener, folder: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        opened(mode="read-only")
    assert not folder.exists()


@pytest.mark.parametrize("place", ["v1", "tmp", "quarantine", "index"])
def test_a_link_in_place_of_an_inner_folder_is_refused(
    opened: Opener, folder: Path, place: str
) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.mkdir(mode=0o700)
    (folder / place).symlink_to(elsewhere)
    with pytest.raises((StoreError, OSError)):
        opened()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "folder", "open to all"])
def test_an_entry_that_is_no_plain_file_of_ours_is_a_miss(
    opened: Opener, folder: Path, kind: str
) -> None:
    store = opened()
    key = key_of(1)
    store.put(key, values_of(1), (4, 3))
    path, aside = entry_path(folder, key), folder.with_name("aside")
    path.rename(aside)
    if kind == "symlink":
        path.symlink_to(aside)
    elif kind == "hard link":
        path.hardlink_to(aside)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        aside.rename(path)
        path.chmod(0o666)
    assert store.get(key) == Miss("corrupt")
    assert store.stats().corrupt == 1
    store.put(key, values_of(1), (4, 3))
    assert isinstance(store.get(key), Hit)


def test_a_linked_fan_out_folder_is_not_followed(opened: Opener, folder: Path) -> None:
    store = opened()
    key = key_of(1)
    store.put(key, values_of(1), (4, 3))
    shard, elsewhere = entry_path(folder, key).parent, folder.with_name("elsewhere")
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    assert isinstance(store.get(key), Miss)
    store.put(key, values_of(2), (4, 3))
    assert store.stats().not_kept == 1
    assert len(list(elsewhere.iterdir())) == 1


def test_files_of_dead_writers_are_swept_and_those_of_living_are_not(
    opened: Opener, folder: Path
) -> None:
    writer = opened()
    writer.put(key_of(1), values_of(1), (4, 3))
    (alive,) = (folder / "writers").iterdir()
    (folder / "tmp" / "dead.1").write_bytes(b"half a file")
    (folder / "tmp" / f"{alive.name}.9").write_bytes(b"half a file")
    (folder / "writers" / "dead").write_bytes(b"0123")
    opened()
    assert [p.name for p in (folder / "tmp").iterdir()] == [f"{alive.name}.9"]
    assert list((folder / "writers").iterdir()) == [alive]
    writer.close()
    assert list((folder / "writers").iterdir()) == []
