"""Parquet files whose rows hold pictures as bytes, as the Hugging Face hub stores them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from primelens.errors import InputError
from primelens.tune.data.arrow import open_parquet
from primelens.tune.data.example import Example, TableImage
from primelens.tune.data.folders import said

__all__ = ["read_parquet"]

_IMAGE_COLUMNS = ("image", "jpg", "img", "picture", "image_bytes")
_ID_COLUMNS = ("image_id", "id", "key", "__key__", "file_name", "filename")
_OTHERS = ("caption", "captions", "text", "label", "split")


def read_parquet(path: Path, *, split: str | None = None) -> Iterator[Example]:
    """One example per row; the pictures are read when they are asked for.

    The picture is in the first column of ``image``, ``jpg``, ``img``, ``picture``, ``image_bytes``
    that is there: binary, or a struct with a field ``bytes``. Captions are in ``captions``,
    ``caption`` or ``text``; ``label``, ``split`` and an id column are optional.

    Args:
        path: a file, or a folder of ``*.parquet`` taken by name.
        split: rows of this split alone, where there is such a column; else a mark.

    Raises:
        DependencyError: pyarrow is not installed.
        InputError: the file cannot be read, or has no column of pictures.
    """
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with open_parquet(file) as table:
            yield from _rows(table, file, split)


def _rows(table: Any, file: Path, split: str | None) -> Iterator[Example]:
    columns = table.schema_arrow.names
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if image is None:
        raise InputError(
            f"{file} has no column of pictures; it has {', '.join(columns) or 'none'}.",
            remedy=f"Name it one of: {', '.join(_IMAGE_COLUMNS)}.",
        )
    wanted = [name for name in (*_ID_COLUMNS, *_OTHERS) if name in columns]
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        rows = table.read_row_group(group, columns=wanted).to_pylist() if wanted else [{}] * count
        for row, item in enumerate(rows):
            source = TableImage(file, image, group, row)
            key = next((item[name] for name in _ID_COLUMNS if item.get(name) is not None), None)
            own = item.get("split")
            if split is not None and own not in (None, split):
                continue
            label = item.get("label")
            yield Example(
                id=source.name if key is None else str(key),
                image=source,
                captions=said({k: v for k, v in item.items() if v is not None}, source.name),
                label=None if label is None else str(label),
                split=own or split or "",
            )
