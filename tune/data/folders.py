"""A folder of pictures with a file that says what is on them.

``metadata.jsonl``: one object a line, ``{"file_name": "1.jpg", "text": "…"}``. ``captions.json``:
a list of such objects. The file's name is under ``file_name`` or ``file``; what is said under
``text``, ``caption`` or ``captions`` (a text or a list); ``label`` and ``split`` are optional.
Where the folder itself has no such file, each subfolder that has one is a split of its name. Where
nothing is said anywhere, a subfolder's name is the class of the pictures in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from primelens.errors import InputError
from primelens.tune.data.example import Example, FileImage
from primelens.tune.data.parsing import image_path, json_lines, load_json, strings

__all__ = ["METADATA", "class_folders", "described_folders", "read_classes", "read_folder", "said"]

METADATA = ("metadata.jsonl", "captions.json")
_NAMES = ("file_name", "file")
_TEXTS = ("captions", "caption", "text")
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".tif", ".tiff"})


def read_folder(folder: Path, *, split: str | None = None) -> Iterator[Example]:
    """Examples in the metadata's order; an id is the file's name as it is written there.

    Args:
        folder: holds the pictures and the metadata, or one such folder per split.
        split: this one alone.

    Raises:
        InputError: there is no metadata, or a line of it is wrong.
    """
    found = described_folders(folder)
    if not found:
        raise InputError(
            f"{folder} holds no {' and no '.join(METADATA)}.",
            remedy='Write one line per picture: {"file_name": "1.jpg", "text": "…"}.',
        )
    for name, file in found:
        for where, item in _rows(file):
            example = _example(file.parent, item, name, where)
            if split is None or example.split == split:
                yield example


def read_classes(folder: Path, *, split: str = "") -> Iterator[Example]:
    """A folder for each class, with its pictures: by class, then by file name.

    An id is ``CLASS/FILE``, the label the class. Files that do not look like pictures are left out.

    Args:
        folder: holds one folder per class.
        split: what the examples are marked with.

    Raises:
        InputError: no subfolder holds a picture.
    """
    found = class_folders(folder)
    if not found:
        raise InputError(
            f"{folder} holds no folder with pictures.", remedy="Make a folder for each class."
        )
    for sub in found:
        for file in sorted(filter(_is_picture, sub.iterdir())):
            key = f"{sub.name}/{file.name}"
            yield Example(key, FileImage(file), label=sub.name, split=split)


def class_folders(folder: Path) -> list[Path]:
    """The subfolders that hold pictures, by name."""
    below = sorted(sub for sub in folder.iterdir() if sub.is_dir())
    return [sub for sub in below if any(map(_is_picture, sub.iterdir()))]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _PICTURES and path.is_file()


def described_folders(folder: Path) -> list[tuple[str, Path]]:
    """Split (empty for the folder itself) and metadata file."""
    own = [folder / name for name in METADATA if (folder / name).is_file()]
    if own:
        return [("", own[0])]
    below = [(sub, sub / name) for sub in sorted(folder.iterdir()) for name in METADATA]
    return [(sub.name, file) for sub, file in below if file.is_file()]


def said(item: dict[str, Any], where: str) -> tuple[str, ...]:
    """The captions of a row of metadata; none where it says nothing."""
    return next((strings(item[name], where) for name in _TEXTS if name in item), ())


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".jsonl":
        yield from json_lines(file)
        return
    data = load_json(file)
    if not isinstance(data, list):
        raise InputError(f"{file} must hold a list of objects.")
    for number, item in enumerate(data):
        yield f"{file}, row {number}", item


def _example(folder: Path, item: Any, split: str, where: str) -> Example:
    name = next((item[key] for key in _NAMES if key in item), None) if type(item) is dict else None
    if not isinstance(name, str):
        raise InputError(f"{where} has no 'file_name'.")
    label = item.get("label")
    return Example(
        id=name,
        image=FileImage(image_path(folder, name, where)),
        captions=said(item, where),
        label=None if label is None else str(label),
        split=split or str(item.get("split", "")),
    )
