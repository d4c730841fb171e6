from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.bench.estimators import (
    Interval,
    block_medians,
    centre_interval,
    compare_blocks,
    mean_interval,
    percentile,
    percentiles,
)

SAMPLES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


def test_percentiles_by_hand() -> None:
    values = [15.0, 20.0, 35.0, 40.0, 50.0]
    # Linear between order statistics: rank (n - 1) q.
    assert percentile(values, 0) == 15.0
    assert percentile(values, 50) == 35.0
    assert percentile(values, 40) == pytest.approx(29.0)  # rank 1.6: 20 + 0.6 * 15
    assert percentile(values, 90) == pytest.approx(46.0)  # rank 3.6: 40 + 0.6 * 10
    assert percentile(values, 100) == 50.0
    assert percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 100.5)])
def test_an_impossible_percentile_is_refused(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, q)


@settings(deadline=None, max_examples=40)
@given(SAMPLES, st.floats(0, 100))
def test_a_percentile_lies_within_the_samples(values: list[float], q: float) -> None:
    assert min(values) <= percentile(values, q) <= max(values)


@settings(deadline=None, max_examples=40)
@given(SAMPLES)
def test_percentiles_rise(values: list[float]) -> None:
    found = list(percentiles(values).values())
    assert found == sorted(found)


@settings(deadline=None, max_examples=40)
@given(SAMPLES, st.floats(0, 100), st.floats(0.01, 100))
def test_a_percentile_scales_with_its_samples(values: list[float], q: float, by: float) -> None:
    scaled = percentile(np.array(values) * by, q)
    assert scaled == pytest.approx(percentile(values, q) * by, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(SAMPLES, st.floats(0, 100), st.randoms())
def test_a_percentile_does_not_depend_on_the_order(
    values: list[float], q: float, random: object
) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert percentile(shuffled, q) == percentile(values, q)


def test_the_thousandth_part_needs_ten_thousand_samples() -> None:
    assert "p99.9" not in percentiles(np.arange(9_999))
    assert percentiles(np.arange(10_001))["p99.9"] == pytest.approx(9990.0)


def test_block_medians_by_hand() -> None:
    assert block_medians([[1, 9, 2], [4, 6], [5]]).tolist() == [2.0, 5.0, 5.0]


def test_a_ratio_by_hand() -> None:
    first = [[1.0], [2.0], [4.0]]
    second = [[2.0], [4.0], [8.0]]
    found = compare_blocks(first, second, paired=True)
    for bound in (found.ratio.low, found.ratio.estimate, found.ratio.high):
        assert bound == pytest.approx(2.0)
    # Three pairs, all up: the exact two-sided signed-rank probability is 2 / 2**3.
    assert found.p_value == pytest.approx(0.25)
    assert found.test == "signed-rank"
    assert found.verdict == "no difference"  # three blocks prove nothing


def test_six_pairs_are_the_least_that_can_prove_something() -> None:
    first = [[1.0 + 0.01 * i] for i in range(6)]
    second = [[1.2 + 0.01 * i] for i in range(6)]
    found = compare_blocks(first, second, paired=True)
    assert found.p_value == pytest.approx(2 / 2**6)
    assert found.verdict == "slower"
    assert compare_blocks(second, first, paired=True).verdict == "faster"


def test_a_small_difference_is_none_however_sure() -> None:
    first = [[1.0 + 0.001 * (i % 3)] for i in range(30)]
    second = [[1.04 * block[0]] for block in first]
    found = compare_blocks(first, second, paired=True)
    assert found.significant
    assert found.verdict == "no difference"
    assert compare_blocks(first, second, paired=True, tolerance=0.03).verdict == "slower"


def test_mann_whitney_by_hand() -> None:
    first = [[1.0], [2.0], [3.0], [4.0]]
    second = [[5.0], [6.0], [7.0], [8.0]]
    found = compare_blocks(first, second, paired=False)
    assert found.test == "mann-whitney"
    assert found.p_value == pytest.approx(2 / 70)  # 8 over 4 orders, the most extreme two


@pytest.mark.parametrize(
    ("first", "second", "paired", "said"),
    [
        ([[1.0]], [[1.0], [2.0]], True, "two blocks"),
        ([[1.0], [1.0]], [[1.0], [2.0], [3.0]], True, "pairs"),
        ([[1.0], [0.0]], [[1.0], [2.0]], True, "positive"),
        ([[1.0], []], [[1.0], [2.0]], False, "no samples"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: list[list[float]], second: list[list[float]], paired: bool, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        compare_blocks(first, second, paired=paired)


BLOCKS = st.lists(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), min_size=2, max_size=12)


@settings(deadline=None, max_examples=40)
@given(BLOCKS, st.booleans())
def test_a_system_does_not_differ_from_itself(blocks: list[list[float]], paired: bool) -> None:
    found = compare_blocks(blocks, blocks, paired=paired)
    assert found.ratio.estimate == pytest.approx(1.0)
    assert found.verdict == "no difference"


@settings(deadline=None, max_examples=40)
@given(BLOCKS, st.floats(0.5, 2.0))
def test_a_common_factor_is_found_exactly(blocks: list[list[float]], factor: float) -> None:
    scaled = [[value * factor for value in block] for block in blocks]
    found = compare_blocks(blocks, scaled, paired=True)
    assert found.ratio.estimate == pytest.approx(factor)
    assert found.ratio.low == pytest.approx(factor)
    assert found.ratio.high == pytest.approx(factor)


@settings(deadline=None, max_examples=40)
@given(BLOCKS, BLOCKS, st.booleans())
def test_swapping_the_systems_inverts_the_ratio(
    first: list[list[float]], second: list[list[float]], paired: bool
) -> None:
    if paired:
        size = min(len(first), len(second))
        first, second = first[:size], second[:size]
    there = compare_blocks(first, second, paired=paired)
    back = compare_blocks(second, first, paired=paired)
    assert back.ratio.estimate == pytest.approx(1.0 / there.ratio.estimate)
    assert there.ratio.low <= there.ratio.estimate <= there.ratio.high
    assert 0.0 <= there.p_value <= 1.0


@settings(deadline=None, max_examples=40)
@given(BLOCKS, BLOCKS)
def test_the_order_of_the_pairs_does_not_matter_to_the_estimate(
    first: list[list[float]], second: list[list[float]]
) -> None:
    size = min(len(first), len(second))
    first, second = first[:size], second[:size]
    there = compare_blocks(first, second, paired=True)
    reverse = compare_blocks(first[::-1], second[::-1], paired=True)
    assert reverse.ratio.estimate == pytest.approx(there.ratio.estimate)
    assert reverse.p_value == pytest.approx(there.p_value)


def test_intervals_of_few_blocks_cover_what_they_promise() -> None:
    """Five normal values, 95 %: the plain percentile bootstrap covers about 83 %."""
    random = np.random.default_rng(7)
    covered = 0
    for seed in range(400):
        values = random.normal(10.0, 1.0, 5)
        covered += not mean_interval(values, seed=seed).excludes(10.0)
    assert covered >= 0.91 * 400


def test_the_centre_is_where_it_is_whatever_a_few_blocks_do() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        values = 0.03 + 0.01 * random.standard_t(2, 24)  # of no finite variance
        interval = centre_interval(values)
        assert interval.low <= interval.estimate <= interval.high
        held += interval.low <= 0.03 <= interval.high
    assert 0.92 <= held / 400 <= 0.98
    far = centre_interval([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 9.0])
    assert far.estimate < 0.06
    assert centre_interval([1.0, 2.0]) == Interval(1.0, 1.5, 2.0)
    with pytest.raises(ValueError, match="no values"):
        centre_interval([])
