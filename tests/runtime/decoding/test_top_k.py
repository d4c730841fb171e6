from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.decoding.top_k import top_k


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 25),
    times=st.integers(64, 300),
    levels=st.sampled_from([2, 5, 50, 1000, 10**7]),
)
def test_equal_scores_come_in_torchs_order(seed: int, count: int, times: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, count * times).astype(np.float32)
    wanted = torch.topk(torch.from_numpy(scores)[None], count)[1][0].numpy()
    np.testing.assert_array_equal(top_k(scores, count), wanted)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 3000),
    count=st.integers(1, 40),
    banned=st.floats(0, 1),
)
def test_the_largest_are_found_whatever_the_sizes(
    seed: int, size: int, count: int, banned: float
) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal(size).astype(np.float32)
    scores[random.random(size) < banned] = -np.inf
    found = top_k(scores, count)
    assert len(set(found.tolist())) == len(found) == min(count, size)
    wanted = np.argsort(-scores, kind="stable")[:count]
    np.testing.assert_array_equal(found, wanted)


def test_of_few_equal_scores_the_lowest_index_comes_first() -> None:
    scores = np.array([1, 3, 3, 2, 3], np.float32)
    assert top_k(scores, 3).tolist() == [1, 2, 4]
    assert top_k(scores, 9).tolist() == [1, 2, 4, 3, 0]
