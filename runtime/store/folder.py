"""The folder of a store: who may use it, and how files come and go in it.

::

    FOLDER/                 0700, owned by the user, no link
        lock                flock: shared to open the index, exclusive to rebuild it
        index/entries.db    recency and size (SQLite); rebuildable, see `primelens.store.index`
        v1/ab/ab….safetensors   the entries, in 256 folders by the first two digits of the key
        tmp/                files being written, named after their writers
        writers/            a file for each open store, which locks it as long as it lives
        quarantine/         files that failed their check, evicted before anything else

Every path is resolved relative to the opened folder, one component at a time, and no component may
be a link, but for the question whether an entry is there. The folder and its inner ones are opened
and checked once; those of the fan-out with each use, which costs less than to hold 256 of them. A
file is written under a temporary name and renamed, so a reader sees all of it or nothing; it is
*not* fsynced, because an entry can be computed again and its checksum tells a torn file from a
whole one.

A file in ``writers/`` lists the entries that its writer has written, or is about to, since it last
told the index, so that they are found when it dies: `primelens.store.writers`.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from primelens.errors import StoreError
from primelens.store.writers import DeadWriters, Writer, dead_writers, enlisted

__all__ = [
    "ENTRIES",
    "INDEX",
    "QUARANTINE",
    "TEMPORARY",
    "WRITERS",
    "DeadWriters",
    "StoreFolder",
    "Writer",
]

ENTRIES, INDEX, QUARANTINE, TEMPORARY, WRITERS = "v1", "index", "quarantine", "tmp", "writers"
SUFFIX = ".safetensors"

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_LINK
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _NO_LINK
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS
_TOP_FOLDER = 0x00020000  # FS_TOPDIR_FL; `chattr +T`
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
        self._inner: dict[str, int] = {}  # descriptors of the folders right in this one
        if os.name != "posix":
            raise StoreError("Kept embeddings need a POSIX system.", remedy="Run without a store.")
        try:
            if writable:
                path.parent.mkdir(parents=True, exist_ok=True)
            made = writable and _made(path)
            self._root = os.open(path, _FOLDER)
        except OSError as error:
            raise StoreError(_cannot_open(path, error), remedy="Give another folder.") from error
        try:
            _refuse_foreign(path, os.fstat(self._root))
            if made:
                _spread(self._root)
            if writable:
                for name in (ENTRIES, INDEX, QUARANTINE, TEMPORARY, WRITERS):
                    self._make_folder(name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the folder; the object is of no use afterwards."""
        for descriptor in self._inner.values():
            os.close(descriptor)
        self._inner.clear()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def read(self, digest: str, most: int | None = None) -> tuple[bytes, int]:
        """Content and inode of an entry's file; of the content at most the first ``most`` bytes.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read, is a link, or no regular file with one name (ELOOP).
        """
        folder = self._open_inner(self._inside(ENTRIES), digest[:2])
        try:
            descriptor = os.open(digest + SUFFIX, _READ, dir_fd=folder)
        finally:
            os.close(folder)
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
        """Whether an entry seems to have a file; only `read` sees that no link leads to it."""
        path = f"{digest[:2]}/{digest}{SUFFIX}"
        return os.access(path, os.F_OK, dir_fd=self._inside(ENTRIES))

    def write(self, digest: str, parts: Sequence[memoryview], name: str) -> None:
        """Write an entry's file, in place of any that is there.

        Args:
            digest: the entry.
            parts: the content.
            name: of the temporary file; it begins with the writer's name, see `Writer.announce`.
        """
        temporary = self._inside(TEMPORARY)
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=temporary)
        try:
            _write_all(descriptor, parts)
            folder = self._made_fan_out(digest)
            try:
                os.rename(name, digest + SUFFIX, src_dir_fd=temporary, dst_dir_fd=folder)
            finally:
                os.close(folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=temporary)
            raise
        finally:
            os.close(descriptor)

    def remove(self, digest: str) -> bool:
        """Remove an entry's file; whether there was one."""
        try:
            with self._fan_out(digest) as folder:
                os.unlink(digest + SUFFIX, dir_fd=folder)
        except FileNotFoundError:
            return False
        return True

    def quarantine(self, digest: str, inode: int | None) -> tuple[str, int] | None:
        """Put a file aside that failed its check.

        Args:
            digest: the entry.
            inode: of the file that failed; another one, written meanwhile, is left alone.

        Returns:
            Its new name and size; None where it was not there any more.
        """
        try:
            target = self._inside(QUARANTINE)
            with self._fan_out(digest) as source:
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
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._inside(QUARANTINE))

    def enlist(self) -> Writer:
        """A new writer, alive until it leaves or its process ends."""
        return enlisted(self._inside(WRITERS))

    def discharge(self, writer: Writer) -> None:
        """A writer leaves; what it wrote is known to the index."""
        with suppress(OSError):
            os.unlink(writer.name, dir_fd=self._inside(WRITERS))
        writer.close()

    def dead_writers(self) -> DeadWriters:
        """The writers that died; their temporary files are removed here."""
        return dead_writers(self._inside(WRITERS), self._inside(TEMPORARY))

    def bury(self, dead: DeadWriters) -> None:
        """Remove the files of writers that died, once the index knows what they wrote."""
        for name in dead.wrote:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._inside(WRITERS))

    def has_leftovers(self) -> bool:
        """Whether there are files of writers, dead or alive."""
        return any(_names(self._inside(name)) for name in (WRITERS, TEMPORARY))

    def entries(self, digests: Iterable[str] | None = None) -> Iterator[tuple[str, int, int]]:
        """Key, size in bytes and time of last change (ns) of every entry's file, or of some."""
        if digests is not None:
            for digest in digests:
                with suppress(FileNotFoundError), self._fan_out(digest) as one:
                    status = os.stat(digest + SUFFIX, dir_fd=one, follow_symlinks=False)
                    yield digest, status.st_size, status.st_mtime_ns
            return
        with suppress(FileNotFoundError):
            home = self._inside(ENTRIES)
            for prefix in _names(home):
                with suppress(FileNotFoundError, NotADirectoryError), self._fan_out(prefix) as one:
                    for name, status in _statuses(one):
                        if name.endswith(SUFFIX):
                            yield name.removesuffix(SUFFIX), status.st_size, status.st_mtime_ns

    def quarantined(self) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of every file in the quarantine."""
        with suppress(FileNotFoundError):
            for name, status in _statuses(self._inside(QUARANTINE)):
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

    def _make_folder(self, name: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._root)
        self._inside(name)

    def _inside(self, name: str) -> int:
        """A descriptor of a folder right in this one, opened and checked the first time."""
        found = self._inner.get(name)
        if found is None:
            found = self._inner[name] = self._open_inner(self._root, name)
        return found

    @staticmethod
    def _open_inner(home: int, name: str) -> int:
        """A descriptor of a folder, opened without following links."""
        descriptor = os.open(name, _FOLDER, dir_fd=home)
        if _foreign(os.fstat(descriptor)):
            os.close(descriptor)
            raise PermissionError(errno.EPERM, "others may write to the folder", name)
        return descriptor

    @contextmanager
    def _fan_out(self, digest: str) -> Iterator[int]:
        """A descriptor of the folder that an entry lies in."""
        descriptor = self._open_inner(self._inside(ENTRIES), digest[:2])
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _made_fan_out(self, digest: str) -> int:
        home, prefix = self._inside(ENTRIES), digest[:2]
        try:
            return self._open_inner(home, prefix)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(prefix, 0o700, dir_fd=home)
            return self._open_inner(home, prefix)


def _made(path: Path) -> bool:
    """Make a folder; whether it was not there."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _spread(folder: int) -> None:
    """Have ext4 look for a place for the inner folders that is not simply their parent's.

    Files are created in the block group of their folder. Where thousands were deleted during the
    last minutes, by whomever, each creation takes 0.6 ms in place of 0.03. Other file systems know
    nothing of it, and need not.
    """
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return
    import fcntl

    flags = array("i", [0])
    with suppress(OSError):
        fcntl.ioctl(folder, _GET_FLAGS, flags)
        flags[0] |= _TOP_FOLDER
        fcntl.ioctl(folder, _SET_FLAGS, flags)


def _foreign(status: os.stat_result) -> bool:
    """Whether somebody else owns it, or may write to it."""
    return status.st_uid != os.geteuid() or bool(status.st_mode & 0o022)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return sorted(entry.name for entry in found)


def _statuses(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in _names(folder):
        with suppress(FileNotFoundError):
            yield name, os.stat(name, dir_fd=folder, follow_symlinks=False)


def _write_all(descriptor: int, parts: Sequence[memoryview]) -> None:
    written = os.writev(descriptor, parts)
    if written < sum(part.nbytes for part in parts):  # the disk is full, or it was interrupted
        rest = b"".join(parts)[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


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
