"""Captions in plain text files: Flickr8k's two forms and tab-separated tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from primelens.errors import InputError
from primelens.tune.data.example import Example, FileImage, ImageBytes, RemoteImage
from primelens.tune.data.parsing import image_path, lines

__all__ = ["read_conceptual", "read_flickr8k"]

_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HEADERS = frozenset({"caption", "captions", "text", "title"})


def read_flickr8k(path: Path, images: Path, *, split: str = "") -> Iterator[Example]:
    """Flickr8k captions: one example per picture, in the order of first mention.

    Two forms, told apart by the first line: ``name.jpg#0<TAB>caption``, and comma-separated with
    the header ``image,caption``, where a caption's own commas may or may not be quoted.

    Args:
        path: ``Flickr8k.token.txt`` or ``captions.txt``.
        images: the folder of the pictures.
        split: what the examples are marked with.
    """
    first = next(lines(path), (0, ""))[1]
    pairs = _tabbed(path) if "\t" in first else _comma_separated(path)
    captions: dict[str, list[str]] = {}
    for name, caption in pairs:
        captions.setdefault(name, []).append(caption)
    for name, own in captions.items():
        file = FileImage(image_path(images, name, str(path)))
        yield Example(name, file, tuple(own), split=split)


def read_conceptual(path: Path, images: Path, *, split: str = "") -> Iterator[Example]:
    """A table ``caption<TAB>file``, as Conceptual Captions has it, with or without a header.

    Rows are read lazily and stay examples of their own. A row that names an address instead of a
    file gives an example whose picture cannot be read: nothing is fetched.

    Args:
        path: the ``.tsv`` file.
        images: the folder that the files' names start from.
        split: what the examples are marked with.
    """
    for number, line in lines(path):
        cells = line.split("\t")
        where = f"{path}, line {number}"
        if len(cells) < 2:
            raise InputError(f"{where} has no tab between caption and file.")
        caption, name = cells[0].strip(), cells[1].strip()
        if number == 1 and caption.lower() in _HEADERS:
            continue
        image: ImageBytes
        if _ADDRESS.match(name):
            image = RemoteImage(name)
        else:
            image = FileImage(image_path(images, name, where))
        yield Example(name, image, (caption,), split=split)


def _tabbed(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in lines(path):
        name, tab, caption = line.partition("\t")
        image, mark, index = name.rpartition("#")
        if not tab or not mark or not index.isdecimal():
            raise InputError(f"{path}, line {number} is not 'name#number<TAB>caption'.")
        yield image.strip(), caption.strip()


def _comma_separated(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.reader(file):
                if not row or [cell.strip().lower() for cell in row] == ["image", "caption"]:
                    continue
                if len(row) < 2:
                    raise InputError(f"{path}: {row[0]!r:.60} is not followed by a caption.")
                # Without quotes, the caption's own commas have cut it into pieces.
                yield row[0].strip(), ",".join(row[1:]).strip()
    except csv.Error as error:
        raise InputError(f"{path} is no comma-separated table: {error}.") from error
