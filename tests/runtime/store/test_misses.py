"""Why something is missing: found late and for many at once, as it was at the time."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from primelens.store import Frame, Hit, Miss

from .conftest import OTHER_TOWER, Opener, entry_path, keep, key_of, values_of


def test_a_miss_says_why(opened: Opener, folder: Path) -> None:
    store = opened()
    keep(store, 1)
    assert store.get(key_of(2)) == Miss("new")
    assert store.get(key_of(1, tower=OTHER_TOWER)) == Miss("differs", ("tower",))
    assert store.get(key_of(1, tower=OTHER_TOWER, tap="pooled")) == Miss("differs", ("tap",))
    assert store.get(key_of(1, "int8")) == Miss("differs", ("dtype",))
    assert store.get(key_of(1, frame=Frame(1, 5))) == Miss("differs", ("frame",))
    keep(store, 1, dtype="int8")
    nearest = store.get(key_of(1, "int8", variant="fp16"))
    assert nearest == Miss("differs", ("variant",))
    assert str(nearest) == "kept with another variant"
    store.prune(0)
    assert store.get(key_of(1)) == Miss("evicted")
    keep(store, 1)
    entry_path(folder, key_of(1)).write_bytes(b"torn")
    assert store.get(key_of(1)) == Miss("corrupt")
    assert store.get(key_of(1)) == Miss("corrupt")  # remembered, until it is kept again
    keep(store, 1)
    assert isinstance(store.get(key_of(1)), Hit)
    entry_path(folder, key_of(1)).unlink()
    assert store.get(key_of(1)) == Miss("evicted")
    assert store.stats().misses == {"corrupt": 2, "differs": 5, "evicted": 2, "new": 1}


def test_a_miss_finds_its_reason_as_it_was(opened: Opener, folder: Path) -> None:
    """Reasons are looked for later than the miss; what came in between must not change them."""
    store = opened()
    store.put_all([(key_of(1, "int8"), values_of(1), (1, 1))], later=True)
    other, new = store.get(key_of(1)), store.get(key_of(2))
    keep(store, 1)
    keep(store, 2, dtype="int8")
    store.put_all([(key_of(2), values_of(2), (1, 1))], later=True)
    assert isinstance(store.get(key_of(2)), Hit)
    assert (other, new) == (Miss("differs", ("dtype",)), Miss("new"))
    entry_path(folder, key_of(1)).unlink()
    gone = store.get(key_of(1))
    keep(store, 1)
    store.flush()
    assert gone == Miss("evicted")
    last = store.get(key_of(3))
    store.close()
    assert pickle.loads(pickle.dumps(last)) == last == Miss("new")
    assert opened().stats().misses == {}


def test_many_misses_are_explained_at_once(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    keep(store, 0)
    keep(store, 700)
    store.flush()
    asked: list[int] = []
    histories = store._index.histories
    monkeypatch.setattr(
        store._index, "histories", lambda keys: asked.append(len(keys)) or histories(keys)
    )
    misses = [store.get(key_of(number, "int8")) for number in range(800)]
    assert asked == [512]
    reasons = [miss.reason for miss in misses if isinstance(miss, Miss)]
    assert asked == [512, 288]
    assert [number for number, reason in enumerate(reasons) if reason == "differs"] == [0, 700]
    assert store.stats().misses == {"differs": 2, "new": 798}
