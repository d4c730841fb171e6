"""The store against a dictionary: what is found, what is evicted, and why something is missing."""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from primelens.options import CacheOptions
from primelens.store import EmbeddingStore, EntryKey, Hit, Miss
from primelens.store.codec import stored

from .conftest import entry_path, files_in, key_of, values_of

KEYS = st.builds(
    key_of, st.integers(0, 7), st.sampled_from(["fp32", "fp16", "int8"]), variant=st.just("fp32")
)


def content_of(key: EntryKey) -> Any:
    """Values of a size that depends on the key."""
    number = int(key.source[:6], 16)
    return values_of(number, (1 + number % 3, 40))


class StoreMachine(RuleBasedStateMachine):
    """The model lists keys from the least to the most recently used."""

    @initialize(cap=st.sampled_from([1_500, 3_000, 6_000, 50_000]))
    def open_first(self, cap: int) -> None:
        self.folder = Path(tempfile.mkdtemp()) / "kept"
        self.cap = cap
        self.model: OrderedDict[EntryKey, int] = OrderedDict()
        self.gone: dict[EntryKey, str] = {}
        self.aside = 0
        self.exact = True  # until recency is lost with the index
        self._open()

    def _open(self) -> None:
        self.store = EmbeddingStore(CacheOptions(self.folder, cap_bytes=self.cap, memory_bytes=0))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder.parent)

    def _make_room(self, key: EntryKey, size: int) -> None:
        self.model.pop(key, None)
        self.model[key] = size
        self.gone.pop(key, None)
        if sum(self.model.values()) + self.aside > self.cap:
            self.aside = 0
        while sum(self.model.values()) > self.cap:
            evicted, _ = self.model.popitem(last=False)
            self.gone[evicted] = "evicted"

    @rule(key=KEYS)
    def put(self, key: EntryKey) -> None:
        values = content_of(key)
        given = self.store.put(key, values, (1, 1))
        assert given.tobytes() == stored(values, key.dtype).restore().tobytes()
        if self.exact:
            path = entry_path(self.folder, key)
            size = path.stat().st_size if path.exists() else self.cap + 1
            if size <= self.cap:
                self._make_room(key, size)

    @rule(key=KEYS)
    def get(self, key: EntryKey) -> None:
        found = self.store.get(key)
        if isinstance(found, Hit):
            wanted = stored(content_of(key), key.dtype).restore()
            assert found.values.tobytes() == wanted.tobytes()
        if not self.exact:
            return
        assert isinstance(found, Hit) == (key in self.model)
        if key in self.model:
            self.model.move_to_end(key)
            return
        assert isinstance(found, Miss)
        if key in self.gone:
            assert found.reason == self.gone[key]
        else:
            others = [other for other in self.model if other.source == key.source]
            assert found == (Miss("differs", ("dtype",)) if others else Miss("new"))

    @precondition(lambda self: self.exact and self.model)
    @rule(data=st.data())
    def flip_a_bit_and_look(self, data: Any) -> None:
        key = data.draw(st.sampled_from(list(self.model)))
        path = entry_path(self.folder, key)
        content = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(content) * 8 - 1))
        content[position // 8] ^= 1 << (position % 8)
        path.write_bytes(content)
        assert self.store.get(key) == Miss("corrupt")
        self.aside += self.model.pop(key)
        self.gone[key] = "corrupt"

    @precondition(lambda self: self.exact)
    @rule(share=st.floats(0, 1))
    def prune(self, share: float) -> None:
        target = int(share * self.cap)
        self.store.prune(target)
        if sum(self.model.values()) + self.aside > target:
            self.aside = 0
        while sum(self.model.values()) > target:
            evicted, _ = self.model.popitem(last=False)
            self.gone[evicted] = "evicted"

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self._open()

    @rule()
    def verify(self) -> None:
        report = self.store.verify()
        assert (report.corrupt, report.unlisted, report.lost) == ([], 0, 0)

    @rule(how=st.sampled_from(["rebuild", "delete"]))
    def lose_the_index(self, how: str) -> None:
        if how == "rebuild":
            self.store.rebuild_index()
        else:
            shutil.rmtree(self.folder / "index")
        if self.exact:
            assert {row.key for row in self.store.rows()} == set(self.model)
        self.exact = False

    @invariant()
    def sizes_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        entries, size, aside = self.store.totals()
        files = files_in(self.folder)
        assert size + aside == sum(path.stat().st_size for path in files) <= self.cap
        assert entries == sum(path.suffix == ".safetensors" for path in files)
        if self.exact:
            assert (size, aside) == (sum(self.model.values()), self.aside)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=10, stateful_step_count=20, deadline=None)


def test_the_model_sees_what_numpy_sees() -> None:
    """The machine compares bytes; these are the values' own."""
    key = key_of(3)
    assert np.array_equal(stored(content_of(key), "fp32").restore(), content_of(key))
