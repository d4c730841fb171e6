"""Half-written files and folders must not exist, whatever happens while writing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from primelens import atomic
from primelens.atomic import atomic_folder, write_bytes, write_file
from primelens.errors import OptionError


@pytest.fixture(params=["kernel", "two renames"])
def renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put a folder in place."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    return str(request.param)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_bytes(target, b"one")
    write_bytes(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert _names(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_bytes(target, b"old")

    def interrupted() -> None:
        with write_file(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("kept")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "kept").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


def test_the_longest_name_the_disk_takes(tmp_path: Path) -> None:
    name = "ä" * 127  # 254 bytes
    write_bytes(tmp_path / name, b"x")
    with atomic_folder(tmp_path / ("b" * 255)) as folder:
        write_bytes(folder / "file", b"x")
    assert _names(tmp_path) == ["b" * 255, name]


def test_bytes_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        done.append(f"flush {kind}")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        assert self.stat().st_size == 4
        done.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_bytes(tmp_path / "file", b"data")
    assert done == ["flush file", "rename", "flush folder"]


def test_a_folder_appears_whole(tmp_path: Path, renaming: str) -> None:
    target = tmp_path / "bundle"
    with atomic_folder(target) as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(".")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_bytes(b"x")
        assert not target.exists()
    assert (target / "sub" / "file").read_bytes() == b"x"
    assert _names(tmp_path) == ["bundle"]


def test_every_file_and_folder_is_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        real_fsync(descriptor)

    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "sub").mkdir()
        for name in ("a", "sub/b"):
            (folder / name).write_bytes(b"x")
        paths = [folder, folder / "a", folder / "sub", folder / "sub" / "b"]
        inodes = {path.stat().st_ino for path in paths}
        monkeypatch.setattr(os, "fsync", fsync)
    assert set(flushed) == inodes | {tmp_path.stat().st_ino}
    assert flushed[-1] == tmp_path.stat().st_ino


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "bundle"):
            pass
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, renaming: str, overwrite: bool) -> None:
    if overwrite:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "old").write_bytes(b"old")
    before = _names(tmp_path)

    def failing() -> None:
        with atomic_folder(tmp_path / "bundle", overwrite=overwrite) as folder:
            (folder / "half").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert _names(tmp_path) == before
    if overwrite:
        assert _names(tmp_path / "bundle") == ["old"]


def test_a_folder_in_the_way_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OptionError, match="there already"), atomic_folder(tmp_path / "bundle"):
        pytest.fail("the block must not run")
    assert _names(tmp_path) == ["bundle"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path, renaming: str) -> None:
    def overtaken() -> None:
        with atomic_folder(tmp_path / "bundle") as folder:
            (folder / "mine").write_bytes(b"")
            (tmp_path / "bundle").mkdir()

    with pytest.raises(OptionError, match="there already"):
        overtaken()
    assert _names(tmp_path) == ["bundle"]
    assert _names(tmp_path / "bundle") == []


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_is_no_folder_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    if kind == "file":
        target.write_bytes(b"x")
    else:
        target.symlink_to(tmp_path if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(OptionError, match="not a folder"), atomic_folder(target, overwrite=True):
        pytest.fail("the block must not run")


def test_overwriting_replaces_the_whole_folder(tmp_path: Path, renaming: str) -> None:
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "bundle", overwrite=True) as folder:
            (folder / name).write_bytes(b"x")
    assert _names(tmp_path / "bundle") == ["second"]
    assert _names(tmp_path) == ["bundle"]


def test_the_old_folder_comes_back_where_the_second_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "old").write_bytes(b"old")
    monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    real_rename = Path.rename
    calls: list[str] = []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if len(calls) == 2:
            raise OSError("no space left")
        return real_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(OSError, match="no space left"),
        atomic_folder(tmp_path / "bundle", overwrite=True) as folder,
    ):
        (folder / "new").write_bytes(b"x")
    assert len(calls) == 3
    assert _names(tmp_path) == ["bundle"]
    assert _names(tmp_path / "bundle") == ["old"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_a_reader_always_finds_one_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    seen: list[str] = []
    stop = threading.Event()

    def fill(text: str) -> None:
        with atomic_folder(target, overwrite=True) as folder:
            (folder / "file").write_text(text)

    def read() -> None:
        while not stop.is_set():
            try:
                descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                seen.append("nothing")
                return
            os.close(descriptor)
            seen.append("folder")

    fill("0")
    reader = threading.Thread(target=read)
    reader.start()
    for i in range(30):
        fill(str(i))
    stop.set()
    reader.join()
    assert set(seen) == {"folder"}
    assert (target / "file").read_text() == "29"


def test_a_killed_process_leaves_the_target_alone(tmp_path: Path) -> None:
    code = (
        "import os, sys; from primelens.atomic import atomic_folder, write_file\n"
        "here = sys.argv[1]\n"
        "with atomic_folder(here + '/bundle') as f, write_file(here + '/file') as g:\n"
        "    (f / 'half').write_bytes(b'x'); g.write(b'half'); g.flush(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == 9
    assert all(name.startswith(".") and name.endswith(".tmp") for name in _names(tmp_path))
    assert len(_names(tmp_path)) == 2
