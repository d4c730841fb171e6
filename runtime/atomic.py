"""Writing files and folders so that a reader sees the old or the new one, never half of either.

Everything is written under a hidden name beside its target, flushed to the disk, and renamed. A
process that is killed leaves at most such a hidden ``.NAME.<random>.tmp``, which nothing reads.
Failures of the operating system (no space, no permission) are raised as the `OSError` they are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from primelens.errors import OptionError

__all__ = ["atomic_folder", "write_bytes", "write_file"]

_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2
# What a kernel, C library or file system answers that cannot do it (NFS: EINVAL).
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, replacing a file that is there."""
    with write_file(path) as file:
        file.write(data)


@contextmanager
def write_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to that takes its place at ``path`` when the block ends.

    Replaces a file (or a link, not what it points to) that is there; after an exception inside the
    block nothing has changed. Permissions follow the umask.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link
    hidden = _hidden_name(target)
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            yield file
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(target)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


@contextmanager
def atomic_folder(target: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which takes its place at ``target`` when the block ends.

    After an exception inside the block the temporary folder is gone and ``target`` is as it was.
    The folder is private (0700) until it is in place; then its permissions follow the umask.

    Args:
        target: the folder to make; parents that are missing are made.
        overwrite: whether a folder that is there is replaced. On Linux the two are exchanged in one
            step; elsewhere there is a moment between two renames with nothing in place.

    Raises:
        OptionError: ``target`` exists and ``overwrite`` is false, or it is not a folder.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link
    _refuse(target, overwrite=overwrite)
    hidden = _hidden_name(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden.mkdir()
    try:
        permissions = hidden.stat().st_mode & 0o777
        hidden.chmod(0o700)
        yield hidden
        hidden.chmod(permissions)
        _flush_tree(hidden)
        _refuse(target, overwrite=overwrite)  # it may have appeared in the meantime
        old = _put_in_place(hidden, target, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    _flush_folder(target.parent)
    if old is not None:
        shutil.rmtree(old)


_BINARY: int = getattr(os, "O_BINARY", 0)


def _hidden_name(target: Path) -> Path:
    # A name may have 255 bytes; a long one is shortened, the random part makes it unique.
    stem = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{stem}.{secrets.token_hex(6)}.tmp")


def _refuse(target: Path, *, overwrite: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OptionError(
            f"{target} is there already, and is not a folder.", remedy="Give another name."
        )
    if target.exists() and not overwrite:
        raise OptionError(
            f"The folder {target} is there already.",
            remedy="Give another name, or allow it to be overwritten.",
        )


def _put_in_place(hidden: Path, target: Path, *, overwrite: bool) -> Path | None:
    """Rename; returns where the old folder went, if there was one."""
    if not (overwrite and target.exists()):
        if not _renameat2(hidden, target, _NOREPLACE):
            hidden.rename(target)
        return None
    if _renameat2(hidden, target, _EXCHANGE):
        return hidden
    aside = _hidden_name(target)
    target.rename(aside)
    try:
        hidden.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    return aside


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Linux's rename with flags; False where there is no such thing, then nothing was done."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no CDLL(None)
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def _flush_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``, and itself, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                # Windows flushes only what is open for writing.
                descriptor = os.open(
                    path, (os.O_RDWR if os.name == "nt" else os.O_RDONLY) | _BINARY
                )
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        _flush_folder(Path(parent))


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such thing for folders.
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)
