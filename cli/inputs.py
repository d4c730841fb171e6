"""From the arguments of a command line to pictures, in the order they were given.

An argument is a file, a folder (its direct children with a picture's suffix, sorted by name) or a
pattern (``'holiday/**/*.jpg'``; matching files with a picture's suffix, sorted). An existing file
is always taken as it is, whatever its name looks like. An argument that yields nothing stays in
the list, as the reason why, so that it becomes a failure of its own and not a silent gap.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from primelens.results import Failure

__all__ = ["PICTURE_SUFFIXES", "VIDEO_SUFFIXES", "Unmatched", "expand", "unmatched"]

# Of the formats in `primelens.images.FORMATS`; spelled out here because Pillow, which could be
# asked, costs more to import than all of the rest of this command.
PICTURE_SUFFIXES = frozenset(
    (
        *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
# Of the containers in `primelens.video`, likewise.
VIDEO_SUFFIXES = frozenset(
    (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm")
)


@dataclass(frozen=True)
class Unmatched:
    """An argument that names no picture, and why."""

    argument: str
    reason: str


def unmatched(entry: Unmatched) -> Failure:
    """An argument that names no picture, as the failed row that it becomes."""
    from primelens.cli.rows import printable
    from primelens.errors import ImageError
    from primelens.results import Failure

    error = ImageError(
        f"{printable(entry.argument)}: {entry.reason}.",
        remedy="Give a picture, a folder that holds pictures, or a pattern that matches some.",
    )
    return Failure(entry.argument, error)


def expand(arguments: Iterable[str]) -> list[str | Unmatched]:
    """Paths of pictures, and an `Unmatched` for each argument that yields none."""
    expanded: list[str | Unmatched] = []
    for argument in arguments:
        expanded += _expand_one(argument)
    return expanded


def _expand_one(argument: str) -> list[str] | list[Unmatched]:
    path = Path(argument)
    if path.is_dir():
        return _in_folder(path, argument)
    if path.exists() or not _is_pattern(argument):
        return [argument]  # a missing file is the runtime's to report, like an unreadable one
    return _matching(argument)


def _in_folder(folder: Path, argument: str) -> list[str] | list[Unmatched]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        return [Unmatched(argument, f"the folder cannot be read: {error.strerror}")]
    pictures = [str(folder / name) for name in names if _is_picture(name)]
    return pictures or [Unmatched(argument, "the folder holds no picture")]


def _matching(pattern: str) -> list[str] | list[Unmatched]:
    import glob

    # Not Path.glob: the pattern is the user's whole path, absolute or not, in the user's spelling.
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207
    files = sorted(name for name in names if Path(name).is_file())
    pictures = [name for name in files if _is_picture(name)]
    found = "only files that are no pictures match" if files else "no file matches the pattern"
    return pictures or [Unmatched(pattern, found)]


def _is_pattern(argument: str) -> bool:
    return any(mark in argument for mark in "*?[")


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURE_SUFFIXES
