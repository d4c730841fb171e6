"""The folder of a store: who may use it, and how files come and go in it.

::

    FOLDER/                 0700, owned by the user, no link
        lock                flock: shared to open the index, exclusive to rebuild it
        index/entries.db    recency and size (SQLite); rebuildable, see `primelens.store.index`
        v1/ab/ab….safetensors   the entries, in 256 folders by the first two digits of the key
        tmp/                files being written; each is locked by its living writer
        quarantine/         files that failed their check, evicted before anything else

Every path is resolved relative to the opened folder, one component at a time, and no component may
be a link. A file is written under a temporary name and renamed, so a reader sees all of it or
nothing; it is *not* fsynced, because an entry can be computed again and its checksum tells a torn
file from a whole one.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from primelens.errors import StoreError

__all__ = ["ENTRIES", "INDEX", "QUARANTINE", "TEMPORARY", "StoreFolder"]

ENTRIES, INDEX, QUARANTINE, TEMPORARY = "v1", "index", "quarantine", "tmp"
SUFFIX = ".safetensors"

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_LINK
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _NO_LINK
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK
_LARGEST = 2**31  # bytes of a file that is read at all


class StoreFolder:
    """An opened and checked folder.

    Args:
        path: where it lies; made if absent and ``writable``.
        writable: whether anything may be made in it.

    Raises:
        StoreError: it is absent, a link, no folder, owned by somebody else, or others may write
            to it; or this system is not POSIX.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path, self.writable = path, writable
        if os.name != "posix":
            raise StoreError("Kept embeddings need a POSIX system.", remedy="Run without a store.")
        try:
            if writable:
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    path.mkdir(mode=0o700)
            self._root = os.open(path, _FOLDER)
        except OSError as error:
            raise StoreError(_cannot_open(path, error), remedy="Give another folder.") from error
        try:
            _refuse_foreign(path, os.fstat(self._root))
            if writable:
                for name in (ENTRIES, INDEX, QUARANTINE, TEMPORARY):
                    self.make_folder(name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the folder; the object is of no use afterwards."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def make_folder(self, name: str) -> None:
        """Make a folder of the store where it is absent."""
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._root)
        with self._inside(name):
            pass

    def read(self, digest: str, most: int | None = None) -> tuple[bytes, int]:
        """Content and inode of an entry's file; of the content at most the first ``most`` bytes.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read, is a link, or no regular file with one name (ELOOP).
        """
        with self._inside(ENTRIES, digest[:2]) as folder:
            descriptor = os.open(digest + SUFFIX, _READ, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_nlink > 1
                or status.st_size > _LARGEST
                or _foreign(status)
            ):
                raise OSError(errno.ELOOP, "a link, no regular file, or somebody else's", digest)
            if most is not None and most < status.st_size:
                return os.read(descriptor, most), status.st_ino
            return _read_all(descriptor, status.st_size), status.st_ino
        finally:
            os.close(descriptor)

    def has(self, digest: str) -> bool:
        """Whether an entry has a file."""
        try:
            with self._inside(ENTRIES, digest[:2]) as folder:
                os.stat(digest + SUFFIX, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def writing(self, parts: Sequence[memoryview]) -> Iterator[str]:
        """Write a temporary file and give its name; it is removed unless `publish` took it.

        The file stays locked meanwhile, which is how `sweep` tells a living writer's file.
        """
        import fcntl

        name = secrets.token_hex(12)
        with self._inside(TEMPORARY) as folder:
            fcntl.flock(folder, fcntl.LOCK_SH)  # no sweep between the file and its lock
            descriptor = os.open(name, _CREATE, 0o600, dir_fd=folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            for part in parts:
                while part:
                    part = part[os.write(descriptor, part) :]
            yield name
        finally:
            with self._inside(TEMPORARY) as folder, suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            os.close(descriptor)

    def publish(self, name: str, digest: str) -> None:
        """Give a temporary file its final name, in place of any entry that has it."""
        with self._inside(TEMPORARY) as source:
            try:
                target = self._inside(ENTRIES, digest[:2])
                with target as folder:
                    os.rename(name, digest + SUFFIX, src_dir_fd=source, dst_dir_fd=folder)
            except FileNotFoundError:
                self.make_folder(f"{ENTRIES}/{digest[:2]}")
                with self._inside(ENTRIES, digest[:2]) as folder:
                    os.rename(name, digest + SUFFIX, src_dir_fd=source, dst_dir_fd=folder)

    def remove(self, digest: str) -> bool:
        """Remove an entry's file; whether there was one."""
        return self._unlink(digest + SUFFIX, ENTRIES, digest[:2])

    def quarantine(self, digest: str, inode: int | None) -> tuple[str, int] | None:
        """Put a file aside that failed its check.

        Args:
            digest: the entry.
            inode: of the file that failed; another one, written meanwhile, is left alone.

        Returns:
            Its new name and size; None where it was not there any more.
        """
        try:
            with self._inside(ENTRIES, digest[:2]) as source, self._inside(QUARANTINE) as target:
                old = digest + SUFFIX
                status = os.stat(old, dir_fd=source, follow_symlinks=False)
                if inode is not None and status.st_ino != inode:
                    return None
                new = f"{digest}-{secrets.token_hex(4)}"
                os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
                return new, status.st_size
        except FileNotFoundError:
            return None

    def remove_quarantined(self, name: str) -> None:
        """Remove a file from the quarantine."""
        self._unlink(name, QUARANTINE)

    def sweep(self) -> int:
        """Remove temporary files whose writers died; returns how many."""
        import fcntl

        swept = 0
        with self._inside(TEMPORARY) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)
            for name in _names(folder):
                with suppress(OSError):
                    descriptor = os.open(name, _READ, dir_fd=folder)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.unlink(name, dir_fd=folder)
                        swept += 1
                    finally:
                        os.close(descriptor)
        return swept

    def entries(self) -> Iterator[tuple[str, int, int]]:
        """Key, size in bytes and time of last change (ns) of every entry's file."""
        for prefix in self._listing(ENTRIES):
            for name, status in self._statuses(ENTRIES, prefix):
                if name.endswith(SUFFIX):
                    yield name.removesuffix(SUFFIX), status.st_size, status.st_mtime_ns

    def quarantined(self) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of every file in the quarantine."""
        for name, status in self._statuses(QUARANTINE):
            yield name, status.st_size

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the store's lock."""
        import fcntl

        flags = (os.O_RDWR | os.O_CREAT if self.writable else os.O_RDONLY) | _NO_LINK
        descriptor = os.open("lock", flags, 0o600, dir_fd=self._root)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _inside(self, *names: str) -> Iterator[int]:
        """A descriptor of a folder in the store; every component is opened without following."""
        descriptor = self._root
        opened = []
        try:
            for name in names:
                for part in name.split("/"):
                    descriptor = os.open(part, _FOLDER, dir_fd=descriptor)
                    opened.append(descriptor)
                    if _foreign(os.fstat(descriptor)):
                        raise PermissionError(errno.EPERM, "others may write to the folder", part)
            yield descriptor
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _unlink(self, name: str, *folders: str) -> bool:
        try:
            with self._inside(*folders) as folder:
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return False
        return True

    def _listing(self, *folders: str) -> list[str]:
        try:
            with self._inside(*folders) as folder:
                return _names(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _statuses(self, *folders: str) -> Iterator[tuple[str, os.stat_result]]:
        for name in self._listing(*folders):
            with suppress(FileNotFoundError), self._inside(*folders) as folder:
                yield name, os.stat(name, dir_fd=folder, follow_symlinks=False)


def _foreign(status: os.stat_result) -> bool:
    """Whether somebody else owns it, or may write to it."""
    return status.st_uid != os.geteuid() or bool(status.st_mode & 0o022)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return sorted(entry.name for entry in found)


def _read_all(descriptor: int, size: int) -> bytes:
    """Up to one byte more than ``size``, so that a file that grew fails its checksum."""
    content = os.read(descriptor, size + 1)
    if len(content) < size:  # Linux reads at most 2 GiB at once and may be interrupted
        parts = [content]
        while part := os.read(descriptor, size):
            parts.append(part)
        content = b"".join(parts)
    return content


def _cannot_open(path: Path, error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
        return f"The folder of kept embeddings, {path}, is a symbolic link."
    return f"The folder of kept embeddings, {path}, cannot be opened: {error.strerror}."


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    """Whoever can write to the folder can put words into the model's mouth."""
    if status.st_uid != os.geteuid():
        raise StoreError(
            f"The folder of kept embeddings, {path}, belongs to user {status.st_uid}, not to you.",
            remedy="Give a folder of your own; export and import carry entries over.",
        )
    if status.st_mode & 0o022:
        raise StoreError(
            f"Others may write to the folder of kept embeddings, {path} "
            f"(mode {stat.S_IMODE(status.st_mode):04o}).",
            remedy=f"If you trust its content: chmod 700 {path}",
        )
