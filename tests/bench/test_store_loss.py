"""The bench of a store that never hits: what it really does, not how long that takes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from primelens.bench.store_loss import BATCH, Loss, throughput_loss
from primelens.options import CacheOptions
from primelens.store import EmbeddingStore


@pytest.mark.parametrize("alike", [False, True])
def test_every_picture_of_a_turn_with_a_store_is_new_to_it(tmp_path: Path, alike: bool) -> None:
    rounds = 3
    found = throughput_loss("default", tmp_path / "kept", Loss(rounds, 1, False, alike))
    assert list(found) == ["encode one by one", f"encode {BATCH} at once"]
    for figures in found.values():
        assert figures["pairs"] == rounds
        assert all(math.isfinite(figure) for figure in figures.values())
        assert figures["low"] <= figures["loss"] <= figures["high"] < 1
        assert min(figures[name] for name in figures if name.endswith("_ms")) > 0
    with EmbeddingStore(CacheOptions(tmp_path / "kept")) as store:
        turns = (rounds + 1) * len(found)  # one to warm up
        assert store.totals()[0] == (0 if alike else turns * BATCH)
