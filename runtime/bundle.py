"""Opening a bundle folder: everything is checked before any graph is opened.

A bundle comes from somewhere else, so nothing in it is trusted: the manifest is size-capped and
    parsed
strictly; every file must be listed, a regular file, not a symbolic link, not a hard link to a file
outside, of the listed size and SHA-256; a file that is not listed refuses the bundle, because a
graph could name it as its external weights. All findings are reported at once.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from primelens.checked import known_unaltered, remember_unaltered
from primelens.errors import BundleError, ModelNotFoundError
from primelens.manifest import FileRecord, Manifest, plain_file_name

__all__ = ["ENGINES_FOLDER", "MANIFEST_NAME", "Bundle", "Check", "file_record", "open_bundle"]

MANIFEST_NAME = "bundle.json"
ENGINES_FOLDER = "engines"  # compiled plans, rebuildable, checked by the engine that reads them
_MANIFEST_CAP = 16 * 2**20
_REMEDY = "Fetch an unaltered copy of the bundle, or export the checkpoint again."


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder and manifest."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Where one of the bundle's files lies."""
        return self.folder / name


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file as the manifest lists it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)


Check = Literal["full", "once", "size"]


def open_bundle(folder: str | Path, *, check: Check = "full") -> Bundle:
    """Read and check a bundle.

    Args:
        folder: the bundle.
        check: "full" compares every SHA-256; "once" does so but for large files that were found
            unaltered before and have not been touched since (`primelens.checked`); "size" trusts a
            content that has the right size.

    Raises:
        ModelNotFoundError: there is no such folder, or it holds no bundle.
        BundleVersionError: it is newer than this primelens.
        BundleError: it is incomplete, altered or malformed; ``problems`` lists every finding.
    """
    folder = Path(folder)
    manifest = Manifest.from_bytes(_read_manifest(folder), where=str(folder / MANIFEST_NAME))
    problems = _unlisted(folder, manifest.files)
    sound = []
    for name, record in manifest.files.items():
        found = _metadata_problem(folder / name, name, record)
        problems += found
        if not found:
            sound.append(name)
    if check != "size":
        problems += _contents(folder, manifest.files, sound, check)
    if problems:
        raise BundleError(
            f"The bundle {folder} is incomplete or altered:", remedy=_REMEDY, problems=problems
        )
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{folder} is not a folder.", remedy="Give the folder that `primelens export` wrote."
        )
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        hint = "It looks like a checkpoint: run `primelens export` on it first."
        other = "Give the folder that `primelens export` wrote."
        raise ModelNotFoundError(
            f"{folder} holds no {MANIFEST_NAME}, so it is not a bundle.",
            remedy=hint if (folder / "config.json").exists() else other,
        ) from None
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise BundleError(f"{path} is a link or no regular file.", remedy=_REMEDY)
    if status.st_size > _MANIFEST_CAP:
        raise BundleError(f"{path} has {status.st_size} bytes; no manifest does.", remedy=_REMEDY)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check the file's permissions."
        ) from error


def _unlisted(folder: Path, files: Mapping[str, FileRecord]) -> list[str]:
    problems = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name in files or entry.name == MANIFEST_NAME:
            continue
        if entry.name == ENGINES_FOLDER and entry.is_dir(follow_symlinks=False):
            continue
        problems.append(f"{entry.name}: not listed in {MANIFEST_NAME}; remove it")
    return problems


def _metadata_problem(path: Path, name: str, record: FileRecord) -> list[str]:
    if not plain_file_name(name):  # the manifest's own check; kept where the path is used
        return [f"{name}: not a plain file name"]
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return [f"{name}: missing"]
    if stat.S_ISLNK(status.st_mode):
        return [f"{name}: a symbolic link; a bundle holds regular files only"]
    if not stat.S_ISREG(status.st_mode):
        return [f"{name}: not a regular file"]
    if status.st_nlink != 1:
        return [f"{name}: has {status.st_nlink} hard links; copy the bundle instead of linking it"]
    if status.st_size != record.size:
        return [f"{name}: {status.st_size} bytes, the manifest says {record.size}"]
    return []


def _contents(
    folder: Path, files: Mapping[str, FileRecord], names: Sequence[str], check: Check
) -> list[str]:
    """What is wrong with the contents of ``names``."""
    since = time.time()
    known = known_unaltered(folder, files) if check == "once" else set()
    left = {name: files[name] for name in names if name not in known}
    problems = _altered(folder, left)
    if check == "once" and left and not problems:
        remember_unaltered(folder, files, names, since)
    return problems


def _altered(folder: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """Names whose content differs; hashing releases the GIL, so two threads halve the wait."""

    def differs(item: tuple[str, FileRecord]) -> str | None:
        name, record = item
        try:
            actual = file_record(folder / name)
        except OSError as error:
            return f"{name}: cannot be read: {error.strerror}"
        return None if actual == record else f"{name}: content differs from its SHA-256"

    with ThreadPoolExecutor(max_workers=2) as pool:
        return [problem for problem in pool.map(differs, files.items()) if problem]
