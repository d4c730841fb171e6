"""The baselines alone."""

from __future__ import annotations

import numpy as np
import pytest

from primelens.errors import InputError
from primelens.tune.evaluation.baselines import most_frequent_texts, nearest_neighbours


def test_the_most_frequent_text_of_the_others() -> None:
    pool = {
        "a": ["A cat.", "a dog"],
        "b": ["a cat", "a cat!", "a bird"],
        "c": ["a dog", "a bird"],
    }
    # a cat 3 times (b twice), a dog twice, a bird twice. Without b: a dog. Without a: a cat.
    assert most_frequent_texts(["a", "b", "c", "elsewhere"], pool) == [
        "A cat.",
        "a dog",
        "A cat.",
        "A cat.",
    ]


def test_of_equally_frequent_texts_the_most_typical() -> None:
    pool = {"a": ["zebra"], "b": ["a man on a horse"], "c": ["a man on a boat at noon"]}
    # Mean word counts: zebra 1; b (4 + 2 + 2 + 4 + 1) / 5; c (4 + 2 + 2 + 4 + 1 + 1 + 1) / 7.
    assert most_frequent_texts(["x"], pool) == ["a man on a horse"]


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(InputError, match="no text of another picture"):
        most_frequent_texts(["a"], {"a": ["x"]})
    with pytest.raises(InputError, match="no other picture"):
        nearest_neighbours(["a"], {"a": np.ones(2, np.float32)}, {"a": np.ones(2, np.float32)})


def test_neighbours_by_cosine_without_oneself() -> None:
    def at(degrees: float) -> np.ndarray:
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)

    own = {"a": at(0), "b": at(10), "c": at(30), "d": at(90)}
    assert nearest_neighbours(list(own), own, own) == ["b", "a", "b", "c"]
    pool = {"pool:a": at(1), "pool:z": at(80)}
    assert nearest_neighbours(list(own), own, pool) == ["pool:a", "pool:a", "pool:a", "pool:z"]
