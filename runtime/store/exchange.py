"""Embeddings in and out of a store, as safetensors shards that any library reads.

A shard holds, for each entry, the tensor ``KEY.values`` and for int8 the scales of its rows,
``KEY.scales`` (``values * scales[..., None]``), where KEY is the entry's key. The shard's metadata
maps KEY to the JSON of the parts of the key, the tap's name, the picture's size, the errors that
storing made, and the CRC-32 over scales and values; ``format`` is ``primelens-embeddings-1``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from primelens.atomic import atomic_folder, write_bytes
from primelens.errors import StoreError
from primelens.store.codec import Stored
from primelens.store.entry_file import Entry, Head
from primelens.store.key import KEY_VERSION, EntryKey, Frame
from primelens.store.store import EmbeddingStore

__all__ = [
    "SHARD_FORMAT",
    "Imported",
    "describe",
    "export_shards",
    "import_shards",
    "keep_sound",
    "key_of",
    "whole_entries",
]

SHARD_FORMAT = "primelens-embeddings-1"

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass
class Imported:
    """What an import did: entries kept, and one line for each that was not."""

    kept: int = 0
    problems: list[str] = field(default_factory=list)


def whole_entries(store: EmbeddingStore) -> Iterator[Entry]:
    """Every sound entry of a store, the most recently used first; corrupt ones are left out."""
    for row in store.rows():
        entry = store.entry(row)
        if entry is not None:
            yield entry


def keep_sound(
    store: EmbeddingStore, entries: Iterable[tuple[str, Callable[[], Entry]]]
) -> Imported:
    """Keep foreign entries; what is unsound is not kept, and is reported.

    Args:
        store: where to.
        entries: where each comes from, for messages, and what reads it; a reader raises whatever
            malformed data make it raise.
    """
    imported = Imported()
    for where, read in entries:
        try:
            entry = read()
        except _MALFORMED as error:
            imported.problems.append(f"{where}: {error}")
            continue
        if store.put_stored(entry):
            imported.kept += 1
        else:
            imported.problems.append(f"{where}: it could not be written")
    return imported


def key_of(parts: Mapping[str, Any], tap: str, digest: str) -> EntryKey:
    """The key that is made of ``parts``, as `EntryKey.document` names them.

    Raises:
        ValueError: they do not make the key with that digest.
    """
    frame = parts["frame"]
    key = EntryKey(
        tower=parts["tower"],
        variant=parts["variant"],
        dtype=parts["dtype"],
        source=parts["source"],
        frame=None if frame is None else Frame(frame["index"], frame["timestamp_ns"]),
        tap=tap,
    )
    if key.digest != digest:
        raise ValueError("the parts of the key do not make the key")
    return key


def describe(entry: Entry) -> dict[str, Any]:
    """What a shard's metadata says of an entry."""
    head, crc = entry.head, 0
    for array in entry.stored.arrays.values():
        crc = zlib.crc32(array.tobytes(), crc)
    return {
        "key": head.key.document(),
        "tap": head.key.tap,
        "size": list(head.size),
        "max_error": head.max_error,
        "relative_error": head.relative_error,
        "crc32": f"{crc:08x}",
    }


def export_shards(store: EmbeddingStore, out: Path, *, shard_bytes: int = 256 * 2**20) -> int:
    """Write every sound entry to shards in a new folder; returns how many entries.

    Args:
        store: what to export.
        out: the folder to make.
        shard_bytes: a shard ends with the entry that makes it larger than this.

    Raises:
        OptionError: ``out`` exists.
    """
    written = number = held = 0
    arrays: dict[str, Any] = {}
    metadata: dict[str, str] = {"format": SHARD_FORMAT}
    with atomic_folder(out) as folder:

        def finish() -> None:
            content = safetensors.numpy.save(arrays, metadata)
            write_bytes(folder / f"embeddings-{number:05d}.safetensors", content)

        for entry in whole_entries(store):
            digest = entry.head.key.digest
            for name, array in entry.stored.arrays.items():
                arrays[f"{digest}.{name}"] = array
                held += array.nbytes
            metadata[digest] = json.dumps(describe(entry))
            written += 1
            if held > shard_bytes:
                finish()
                number, held = number + 1, 0
                arrays, metadata = {}, {"format": SHARD_FORMAT}
        if arrays or not number:
            finish()
    return written


def import_shards(store: EmbeddingStore, shards: Iterable[Path]) -> Imported:
    """Keep the entries of shards that `export_shards` wrote; what is unsound is not kept.

    Raises:
        StoreError: a file cannot be read, or is no such shard.
    """
    return keep_sound(store, _foreign(shards))


def _foreign(shards: Iterable[Path]) -> Iterator[tuple[str, Callable[[], Entry]]]:
    for path in shards:
        arrays, metadata = _open_shard(path)
        for digest, text in metadata.items():
            if digest != "format":
                yield f"{path}: {digest}", partial(_entry, digest, text, arrays)


def _open_shard(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as shard:
            metadata = shard.metadata() or {}
            if metadata.get("format") != SHARD_FORMAT:
                raise StoreError(
                    f"{path} is no shard of embeddings (no format {SHARD_FORMAT!r}).",
                    remedy="Give files that `primelens cache export` wrote.",
                )
            names = list(shard.keys())
            return {name: shard.get_tensor(name) for name in names}, metadata
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}.", remedy="Export the embeddings again."
        ) from error


def _entry(digest: str, text: str, arrays: Mapping[str, Any]) -> Entry:
    described = json.loads(text)
    version = described["key"]["key_version"]
    if version != KEY_VERSION:
        raise ValueError(f"key version {version} is unknown")
    key = key_of(described["key"], described["tap"], digest)
    names = ("scales", "values")
    kept = Stored.of({n: arrays[f"{digest}.{n}"] for n in names if f"{digest}.{n}" in arrays})
    width, height = described["size"]
    errors = float(described["max_error"]), float(described["relative_error"])
    entry = Entry(Head(key, (int(width), int(height)), *errors), kept)
    if describe(entry)["crc32"] != described["crc32"]:
        raise ValueError("the checksum is wrong")
    return entry
