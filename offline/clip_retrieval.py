"""Kept embeddings in the folder layout of clip-retrieval: ``.npy`` beside parquet.

::

    OUT/img_emb/img_emb_0000.npy          [N, C] or [N, L, C], float16 or float32
    OUT/metadata/metadata_0000.parquet    one row per embedding, in the same order

One folder holds one tap of one tower: rows of an index must be comparable. The parquet's columns
are the parts of the key (``key``, ``source``, ``tower``, ``tap``, ``variant``, ``dtype``,
``frame``), ``width`` and ``height`` of the picture, and the errors that storing made. int8 entries
are widened to float32 and keep their ``dtype``, which remains true of the values.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.atomic import atomic_folder
from primelens.errors import DependencyError, StoreError
from primelens.store.codec import stored
from primelens.store.entry_file import Entry, Head
from primelens.store.exchange import Imported, keep_sound, key_of, whole_entries
from primelens.store.key import StoredDtype
from primelens.store.store import EmbeddingStore

__all__ = ["export_folder", "import_folder"]

_COLUMNS = (
    *("key", "source", "tower", "tap", "variant", "dtype", "frame", "width", "height"),
    *("max_error", "relative_error"),
)


def export_folder(
    store: EmbeddingStore, out: Path, *, tap: str | None = None, rows_per_file: int = 100_000
) -> int:
    """Write the sound entries of one tap; returns how many.

    Args:
        store: what to export.
        out: the folder to make.
        tap: the tap's name; may be left out where the store holds one only.
        rows_per_file: embeddings per ``.npy``.

    Raises:
        StoreError: nothing fits, or embeddings of several taps, towers or variants do.
        OptionError: ``out`` exists.
        DependencyError: pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    _check_one_kind(store, tap)
    written = 0
    with atomic_folder(out) as folder:
        for name in ("img_emb", "metadata"):
            (folder / name).mkdir()
        for number, entries in enumerate(_chunks(store, tap, rows_per_file)):
            halves = all(entry.stored.values.dtype == np.float16 for entry in entries)
            dtype = np.float16 if halves else np.float32
            values = np.stack([entry.stored.restore().astype(dtype) for entry in entries])
            np.save(folder / "img_emb" / f"img_emb_{number:04d}.npy", values)
            table = arrow.Table.from_pylist([_row(entry.head) for entry in entries])
            parquet.write_table(table, folder / "metadata" / f"metadata_{number:04d}.parquet")
            written += len(entries)
    return written


def import_folder(store: EmbeddingStore, folder: Path) -> Imported:
    """Keep the embeddings of a folder that `export_folder` wrote.

    Raises:
        StoreError: a file is missing, unreadable or has other columns.
        DependencyError: pyarrow is not installed.
    """
    _, parquet = _pyarrow()
    files = sorted((folder / "metadata").glob("metadata_*.parquet"))
    if not files:
        raise StoreError(
            f"{folder} holds no metadata/metadata_*.parquet.",
            remedy="Give a folder that `primelens cache export --format clip-retrieval` wrote.",
        )
    return keep_sound(store, _foreign(folder, files, parquet))


def _foreign(
    folder: Path, files: Sequence[Path], parquet: Any
) -> Iterator[tuple[str, Callable[[], Entry]]]:
    for path in files:
        values, rows = _read(folder, path, parquet)
        for number, (row, value) in enumerate(zip(rows, values, strict=True)):
            yield f"{path}: row {number}", partial(_entry, row, value)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Parquet needs the package 'pyarrow', which is not installed.",
            remedy="Run `pip install 'primelens[parquet]'`.",
        ) from error


def _check_one_kind(store: EmbeddingStore, tap: str | None) -> None:
    kinds = Counter(
        (row.key.tap, row.key.tower, row.key.variant)
        for row in store.rows()
        if tap in (None, row.key.tap)
    )
    if not kinds:
        named = "" if tap is None else f" of the tap {tap!r}"
        raise StoreError(
            f"{store.path} holds no embedding{named}.", remedy="Encode pictures first."
        )
    if len(kinds) > 1:
        raise StoreError(
            f"{store.path} holds embeddings that do not belong together:",
            problems=[f"tap {t}, tower {i[:12]}, {v}: {n}" for (t, i, v), n in kinds.items()],
            remedy="Name one tap; where the towers differ, keep each in a folder of its own.",
        )


def _chunks(store: EmbeddingStore, tap: str | None, size: int) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    for entry in whole_entries(store):
        if tap in (None, entry.head.key.tap):
            chunk.append(entry)
            if len(chunk) == size:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _row(head: Head) -> dict[str, Any]:
    key, frame = head.key, head.key.document()["frame"]
    return {
        "key": key.digest,
        "source": key.source,
        "tower": key.tower,
        "tap": key.tap,
        "variant": key.variant,
        "dtype": key.dtype,
        "frame": "" if frame is None else json.dumps(frame),
        "width": head.size[0],
        "height": head.size[1],
        "max_error": head.max_error,
        "relative_error": head.relative_error,
    }


def _read(folder: Path, path: Path, parquet: Any) -> tuple[NDArray[Any], Sequence[Any]]:
    number = path.stem.removeprefix("metadata_")
    array = folder / "img_emb" / f"img_emb_{number}.npy"
    try:
        values: NDArray[Any] = np.load(array, mmap_mode="r", allow_pickle=False)
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{array} and {path} cannot be read: {error}.", remedy="Export the embeddings again."
        ) from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing or table.num_rows != len(values):
        wrong = f"lacks {', '.join(missing)}" if missing else f"has not {len(values)} rows"
        raise StoreError(
            f"{path} {wrong}: the embeddings cannot be filed under their keys.",
            remedy="Give a folder that `primelens cache export --format clip-retrieval` wrote.",
        )
    return values, table.to_pylist()


def _entry(row: dict[str, Any], values: NDArray[Any]) -> Entry:
    parts = {**row, "frame": json.loads(row["frame"]) if row["frame"] else None}
    key = key_of(parts, row["tap"], row["key"])
    # int8 values are kept as the floats they stand for: quantising them again could move them.
    exact: StoredDtype = "fp16" if key.dtype == "fp16" else "fp32"
    kept = stored(np.array(values, np.float32), exact)
    size = int(row["width"]), int(row["height"])
    return Entry(Head(key, size, float(row["max_error"]), float(row["relative_error"])), kept)
