from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primelens.options import CacheOptions
from primelens.store import EmbeddingStore, EntryKey, StoredDtype

TOWER, OTHER_TOWER = "a" * 64, "b" * 64


def key_of(number: int, dtype: StoredDtype = "fp32", **parts: Any) -> EntryKey:
    """The key of picture ``number``."""
    source = hashlib.sha256(b"%d" % number).hexdigest()
    known: dict[str, Any] = {"tower": TOWER, "variant": "fp32", "tap": "last_hidden_state"}
    return EntryKey(dtype=dtype, source=source, **(known | parts))


def values_of(number: int, shape: tuple[int, ...] = (6, 16)) -> Any:
    """Values that only picture ``number`` has."""
    return np.random.default_rng(number).standard_normal(shape).astype(np.float32)


def keep(store: EmbeddingStore, number: int, **key: Any) -> Any:
    """Keep picture ``number``; what the store returns."""
    return store.put(key_of(number, **key), values_of(number), (640, 480))


def files_in(folder: Path) -> list[Path]:
    """The entries' files, and what is being written or was put aside."""
    places = ("v1", "tmp", "quarantine")
    return [p for place in places for p in (folder / place).rglob("*") if p.is_file()]


def entry_path(folder: Path, key: EntryKey) -> Path:
    return folder / "v1" / key.digest[:2] / f"{key.digest}.safetensors"


Opener = Callable[..., EmbeddingStore]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def opened(folder: Path) -> Iterator[Opener]:
    """Opens stores on one folder, with nothing held in memory, and closes them."""
    stores = []

    def opener(**options: Any) -> EmbeddingStore:
        store = EmbeddingStore(CacheOptions(folder, **({"memory_bytes": 0} | options)))
        stores.append(store)
        return store

    yield opener
    for store in stores:
        store.close()
