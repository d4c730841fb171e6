"""Who writes into a store's folder: a file for each, locked as long as its writer lives.

The file lists the entries that its writer has written, or is about to, and the index does not know
yet. Whoever gets the lock of another's file knows that its writer died, and reads the list.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["DeadWriters", "Writer", "dead_writers", "enlisted"]

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | _NO_LINK
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _NO_LINK
_DIGEST = re.compile(rb"[0-9a-f]{64}")


class Writer:
    """An open store that may write: its file in ``writers/``, locked while it lives.

    Attributes:
        name: what its temporary files' names begin with.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self._descriptor = name, descriptor
        self._number = 0

    def announce(self, digests: Sequence[str]) -> list[str]:
        """Note entries that are about to be written; the names of their temporary files.

        Raises:
            OSError: they could not be noted.
        """
        notes = "".join(f"{digest}\n" for digest in digests).encode()
        if os.write(self._descriptor, notes) < len(notes):
            raise OSError(errno.ENOSPC, "the notes of a writer were cut off")
        first = self._number + 1
        self._number += len(digests)
        return [f"{self.name}.{number}" for number in range(first, self._number + 1)]

    def recorded(self) -> None:
        """Forget the notes, because the index knows them now."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Let go of the file and its lock."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class DeadWriters:
    """Writers that died, locked against others who would bury them too.

    Attributes:
        wrote: name → keys of entries that the index may not know.
        living: names of the others.
        locks: name → descriptor of its file.
    """

    wrote: dict[str, list[str]]
    living: list[str]
    locks: dict[str, int]

    def release(self) -> None:
        """Let go of the locks."""
        for descriptor in self.locks.values():
            os.close(descriptor)
        self.locks.clear()


def enlisted(folder: int) -> Writer:
    """A new writer, with a file in the folder of writers."""
    import fcntl

    fcntl.flock(folder, fcntl.LOCK_SH)  # nobody is declared dead between its file and its lock
    try:
        name = secrets.token_hex(12)
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)
    return Writer(name, descriptor)


def dead_writers(folder: int, temporary: int) -> DeadWriters:
    """The writers that died; their temporary files are removed here.

    Args:
        folder: descriptor of the folder of writers.
        temporary: that of the folder of files being written.
    """
    import fcntl

    living, locked = [], {}
    fcntl.flock(folder, fcntl.LOCK_EX)  # none is enlisted meanwhile
    try:
        for name in _names(folder):
            descriptor = _locked_now(name, folder)
            if descriptor is None:
                living.append(name)
            else:
                locked[name] = descriptor
        for name in _names(temporary):
            if name.split(".")[0] not in living:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=temporary)
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)
    return DeadWriters({name: _noted(one) for name, one in locked.items()}, living, locked)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return sorted(entry.name for entry in found)


def _locked_now(name: str, folder: int) -> int | None:
    """A descriptor of a writer's file if its lock is free, which it holds then; else None."""
    import fcntl

    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        return None  # it is leaving
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _noted(descriptor: int) -> list[str]:
    """The keys that a writer noted; a line that was cut off is none."""
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    lines = content.split(b"\n")
    return [line.decode() for line in lines if _DIGEST.fullmatch(line)]
