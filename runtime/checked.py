"""Remembers which files of bundles were read whole and found unaltered, so that starting is fast.

Hashing a gigabyte takes a third of a second, which is a third of a cold start. A file that was
compared with its SHA-256 is therefore remembered by what the file system says of it: device, inode,
size, and the times of the last change of its content and of its status. The system sets the latter
at every change and nobody can set it to a moment of their choice, so an altered, replaced or copied
file is read again. What this cannot see is a disk that lost bits by itself: ``check="full"`` and
`primelens.verify.verify` read everything, always.

A file that changed less than two seconds before it was read is not remembered: another change might
leave the same times behind. The record lies in the user's cache folder (``XDG_CACHE_HOME``), in a
folder that belongs to the user and that nobody else may write to; where that cannot be had, nothing
is remembered. Nothing is remembered of small bundles, which are read faster than it would help.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from primelens.atomic import write_bytes
from primelens.manifest import FileRecord

__all__ = ["known_unaltered", "remember_unaltered"]

logger = logging.getLogger("primelens.bundle")

_VERSION = 1
_WORTHWHILE = 64 * 2**20  # bytes in all; less is hashed in some 20 ms
_SETTLED = 2.0  # seconds; coarser than the clocks of file systems in use
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def known_unaltered(folder: Path, files: Mapping[str, FileRecord]) -> set[str]:
    """Names of the files that were found unaltered before and have not been touched since."""
    if not _worthwhile(files):
        return set()
    record = _record_of(folder)
    try:
        if record is None or not _private(record.parent) or not _private(record):
            return set()
        found = json.loads(record.read_bytes())
        if found["version"] != _VERSION:
            return set()
        known: Mapping[str, list[object]] = found["files"]
        return {
            name
            for name, listed in files.items()
            if known.get(name) == [*_looks_of(folder / name), listed.sha256]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # absent, torn or of another making: then everything is read


def remember_unaltered(
    folder: Path, files: Mapping[str, FileRecord], names: Iterable[str], since: float
) -> None:
    """Remember ``names``, which were just read and equal their records.

    Args:
        folder: the bundle.
        files: its manifest's records.
        names: the files that are unaltered.
        since: `time.time` before the first of them was read.
    """
    record = _record_of(folder)
    if record is None or not _worthwhile(files):
        return
    try:
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(record.parent):
            return
        looks = {name: _looks_of(folder / name) for name in names}
        settled = int((since - _SETTLED) * 1e9)
        kept = {
            name: [*look, files[name].sha256]
            for name, look in looks.items()
            if max(look[3:]) < settled
        }
        if kept:
            content = json.dumps({"version": _VERSION, "files": kept})
            write_bytes(record, content.encode())
    except OSError as error:
        logger.debug("nothing remembered of %s: %s", folder, error)


def _worthwhile(files: Mapping[str, FileRecord]) -> bool:
    return sum(record.size for record in files.values()) >= _WORTHWHILE


def _record_of(folder: Path) -> Path | None:
    """The file that speaks of a bundle's folder; None where changes cannot be told by status."""
    if os.name != "posix":  # elsewhere the third time is that of the file's making
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return Path(cache) / "primelens" / "checked" / f"{key}.json"


def _private(path: Path) -> bool:
    """Whether only this user can have written it."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def _looks_of(path: Path) -> list[int]:
    """Device, inode, size, and nanoseconds of the last change of content and of status."""
    seen = path.lstat()
    return [seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
