from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from primelens import bundle, checked
from primelens.bundle import file_record
from primelens.checked import known_unaltered, remember_unaltered

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing is remembered")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files that changed long ago, and a cache folder that is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "_WORTHWHILE", 4)
    made = tmp_path / "bundle"
    made.mkdir()
    for name, text in (("a.weights", "aaaa"), ("b.weights", "bbbb")):
        (made / name).write_text(text)
    return made


def _records(folder: Path) -> dict[str, bundle.FileRecord]:
    return {path.name: file_record(path) for path in sorted(folder.iterdir())}


LATER = 10**12  # seconds: any file has settled by then


def test_what_was_read_and_not_touched_is_known(folder: Path) -> None:
    records = _records(folder)
    assert known_unaltered(folder, records) == set()
    remember_unaltered(folder, records, ["a.weights"], LATER)
    assert known_unaltered(folder, records) == {"a.weights"}
    assert known_unaltered(folder.parent / "bundle" / "..", records) == set()


def test_a_touched_file_is_read_again_even_with_its_old_times(folder: Path) -> None:
    records = _records(folder)
    remember_unaltered(folder, records, records, LATER)
    before = (folder / "a.weights").stat()
    (folder / "a.weights").write_text("AAAA")
    os.utime(folder / "a.weights", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_unaltered(folder, records) == {"b.weights"}


def test_another_digest_in_the_manifest_is_not_known(folder: Path) -> None:
    records = _records(folder)
    remember_unaltered(folder, records, records, LATER)
    records["a.weights"] = bundle.FileRecord(size=4, sha256="0" * 64)
    assert known_unaltered(folder, records) == {"b.weights"}


def test_what_changed_just_now_is_not_remembered(folder: Path) -> None:
    records = _records(folder)
    now = (folder / "a.weights").stat().st_ctime
    remember_unaltered(folder, records, records, now + 1.9)
    assert known_unaltered(folder, records) == set()


def test_small_bundles_leave_no_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "_WORTHWHILE", 9)
    remember_unaltered(folder, _records(folder), ["a.weights"], LATER)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_record_that_others_can_write_is_not_believed(
    folder: Path, tmp_path: Path, what: str
) -> None:
    records = _records(folder)
    remember_unaltered(folder, records, records, LATER)
    (record,) = (tmp_path / "cache/primelens/checked").iterdir()
    (record if what == "file" else record.parent).chmod(0o777)
    assert known_unaltered(folder, records) == set()


@pytest.mark.parametrize("content", ["", "[]", '{"version": 9}', '{"version": 1, "files": []}'])
def test_a_broken_record_means_reading(folder: Path, tmp_path: Path, content: str) -> None:
    records = _records(folder)
    remember_unaltered(folder, records, records, LATER)
    (record,) = (tmp_path / "cache/primelens/checked").iterdir()
    record.write_text(content)
    assert known_unaltered(folder, records) == set()


def test_a_cache_folder_that_cannot_be_made_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember_unaltered(folder, _records(folder), ["a.weights"], LATER)
    assert known_unaltered(folder, _records(folder)) == set()


def test_contents_are_hashed_once_and_alterations_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = _records(folder)
    hashed: list[str] = []

    def counted(path: Path) -> bundle.FileRecord:
        hashed.append(path.name)
        return file_record(path)

    monkeypatch.setattr(bundle, "file_record", counted)
    monkeypatch.setattr(bundle.time, "time", lambda: LATER)
    for check, expected in (("once", 2), ("once", 2), ("full", 4)):
        assert bundle._contents(folder, records, list(records), check) == []  # type: ignore[arg-type]
        assert len(hashed) == expected
    (folder / "b.weights").write_text("cccc")
    assert bundle._contents(folder, records, list(records), "once") == [
        "b.weights: content differs from its SHA-256"
    ]
    assert hashed[4:] == ["b.weights"]


def test_the_record_says_what_was_seen(folder: Path, tmp_path: Path) -> None:
    records = _records(folder)
    remember_unaltered(folder, records, ["a.weights"], LATER)
    (record,) = (tmp_path / "cache/primelens/checked").iterdir()
    seen = (folder / "a.weights").stat()
    assert json.loads(record.read_text()) == {
        "version": 1,
        "files": {
            "a.weights": [
                seen.st_dev,
                seen.st_ino,
                4,
                seen.st_mtime_ns,
                seen.st_ctime_ns,
                records["a.weights"].sha256,
            ]
        },
    }
