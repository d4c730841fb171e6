"""Kept embeddings with real graphs: a hit says what a miss said, at every stored dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import primelens
from primelens import CacheOptions, CaptionOptions, DecodingOptions, LoadOptions
from primelens.results import Caption
from primelens.store.key import StoredDtype

FROZEN = Path(__file__).parent / "data" / "bundle-v1"
ONE = LoadOptions(threads=1, check="size")
SEARCHES = (
    CaptionOptions(max_new_tokens=12),
    CaptionOptions(max_new_tokens=12, decoding=DecodingOptions(num_beams=3)),
    CaptionOptions(max_new_tokens=12, decoding=DecodingOptions(do_sample=True, seed=5)),
)


def said(captions: list[Caption]) -> list[Any]:
    return [(c.tokens, c.token_logprobs, c.text, c.score) for c in captions]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("derived", [0, 2**24])
def test_a_hit_says_what_the_miss_said(tmp_path: Path, dtype: StoredDtype, derived: int) -> None:
    """First the miss, then hits in memory, on disk, and in the tier of derived tensors."""
    random = np.random.default_rng(11)
    pictures = [random.integers(0, 256, (40, 56, 3), dtype=np.uint8) for _ in range(6)]
    cache = CacheOptions(tmp_path / "kept", dtype=dtype, derived_bytes=derived)
    first = primelens.load(FROZEN, options=ONE, cache=cache)
    misses = [said(first.caption(pictures, SEARCHES[0]))]
    misses += [said(first.caption(pictures, search)) for search in SEARCHES[1:]]
    again = [said(first.caption(pictures, search)) for search in SEARCHES]
    first.close()
    later = primelens.load(FROZEN, options=ONE, cache=cache)
    later._encoder.tower = None  # whoever asks the tower now, fails
    fresh = [said(later.caption(pictures, search)) for search in SEARCHES]
    last = [said(later.caption(pictures, search)) for search in SEARCHES]
    assert misses == again == fresh == last
    stats = later.cache_stats()
    assert stats is not None
    assert (stats.disk_hits, stats.misses) == (6, {})


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_miss_alone_says_what_a_hit_among_misses_says(tmp_path: Path, dtype: StoredDtype) -> None:
    random = np.random.default_rng(12)
    pictures = [random.integers(0, 256, (40, 56, 3), dtype=np.uint8) for _ in range(4)]
    cache = CacheOptions(tmp_path / "kept", dtype=dtype)
    model = primelens.load(FROZEN, options=ONE, cache=cache)
    options = SEARCHES[0]
    alone = [model.caption(picture, options).tokens for picture in pictures[:2]]
    mixed = [caption.tokens for caption in model.caption(pictures, options)]
    assert mixed[:2] == alone
    twice = model.caption([pictures[3], pictures[3]], options)
    assert twice[0].tokens == twice[1].tokens == mixed[3]
