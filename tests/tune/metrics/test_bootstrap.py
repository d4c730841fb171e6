"""Intervals and the paired test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from primelens.errors import InputError
from primelens.tune.metrics import Resampling, bleu, compare, intervals, joined, mean_tally


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = intervals(mean_tally("m", values), Resampling(samples=4000))["m"]
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_a_replicate_is_the_score_of_a_resampled_corpus() -> None:
    """The matrix product must equal drawing images and scoring them anew."""
    candidates = [["a", "b", "c"], ["a"], ["c", "d", "d", "e"], ["b", "b"]]
    references = [[["a", "b"]], [["a", "c", "d"]], [["c", "d", "e"], ["x"]], [["b"]]]
    how = Resampling(samples=50, level=0.5, seed=4)
    drawn = np.random.default_rng(4).integers(0, 4, (50, 4))
    anew = [
        bleu([candidates[i] for i in rows], [references[i] for i in rows]).scores()["BLEU-1"]
        for rows in drawn
    ]
    found = intervals(bleu(candidates, references), how)["BLEU-1"]
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(anew, [0.25, 0.75])), rel=1e-7
    )


def test_the_seed_decides() -> None:
    tally = mean_tally("m", np.arange(30.0))
    assert intervals(tally, Resampling(seed=1)) == intervals(tally, Resampling(seed=1))
    assert intervals(tally, Resampling(seed=1)) != intervals(tally, Resampling(seed=2))


def test_the_unit_is_the_image_and_not_its_questions() -> None:
    """Ten questions that all have the same answer are one observation."""
    single = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    one = intervals(mean_tally("m", single))["m"]
    ten = intervals(mean_tally("m", 10 * single, np.full(100, 10.0)))["m"]
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))


def test_the_permutation_test_equals_counting_all_assignments() -> None:
    first, second = np.array([3.0, 1, 4, 1, 5, 9, 2]), np.array([2.0, 1, 1, 0, 5, 6, 4])
    step = first - second
    signs = np.array(list(itertools.product([-1, 1], repeat=7)))
    exact = (np.abs(signs @ step) >= abs(step.sum()) - 1e-12).mean()
    found = compare(mean_tally("m", first), mean_tally("m", second), Resampling(samples=20_000))
    assert found["m"].p_value == pytest.approx(exact, abs=0.015)
    assert found["m"].difference.value == pytest.approx(step.mean())


def test_equal_systems_do_not_differ_and_unequal_ones_do() -> None:
    random = np.random.default_rng(2)
    base = random.normal(0, 1, 300)
    better = base + random.normal(0.1, 0.2, 300)
    same = compare(mean_tally("m", base), mean_tally("m", base))["m"]
    assert same.p_value == 1
    assert same.difference == pytest.approx(same.difference)
    assert (same.difference.low, same.difference.high) == (0, 0)
    found = compare(mean_tally("m", better), mean_tally("m", base))["m"]
    # Pairing finds a difference far smaller than the spread of either system.
    assert found.p_value < 0.01
    assert 0 < found.difference.low < 0.1 < found.difference.high < 0.15


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="same images"):
        compare(mean_tally("m", np.ones(3)), mean_tally("m", np.ones(4)))
    with pytest.raises(InputError, match="same images"):
        compare(mean_tally("m", np.ones(3)), mean_tally("n", np.ones(3)))
    with pytest.raises(InputError, match="samples is 0"):
        Resampling(samples=0)
    with pytest.raises(InputError, match="level is 1"):
        Resampling(level=1)
    with pytest.raises(InputError, match="cannot be joined"):
        joined([mean_tally("m", np.ones(3)), mean_tally("n", np.ones(3))])


def test_joined_rounds_give_the_mean_of_their_scores() -> None:
    first = bleu([["a", "b"], ["c"]], [[["a", "b"]], [["c", "d"]]])
    second = bleu([["a"], ["x"]], [[["a", "b"]], [["c", "d"]]])
    both = joined([first, second])
    for name, value in both.scores().items():
        assert value == pytest.approx((first.scores()[name] + second.scores()[name]) / 2)
    assert intervals(both)["BLEU-1"].low <= both.scores()["BLEU-1"]
