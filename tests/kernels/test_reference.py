"""The layouts and the NumPy reference against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.kernels import layout, reference
from primelens.kernels.activations import ACTIVATIONS, activate


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 50), st.integers(0, 2**31))
def test_packing_8_bits_loses_nothing(groups: int, width: int, seed: int) -> None:
    weight = np.random.default_rng(seed).integers(-127, 128, (4 * groups, width))
    packed = layout.pack8(weight)
    assert packed.shape == (-(-width // 16), groups, 16, 4)
    assert np.array_equal(layout.unpack8(packed, width), weight)
    k, n = 4 * groups - 1, width - 1  # where the header says that it lies
    assert packed[n // 16, k // 4, n % 16, k % 4] == weight[k, n] + 128


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 50), st.integers(0, 2**31))
def test_packing_4_bits_loses_nothing(blocks: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-7, 8, (32 * blocks, width))
    multipliers = rng.integers(0, 19, (blocks, width))
    packed, scales = layout.pack4(values, multipliers)
    whole = values * np.repeat(multipliers, 32, axis=0)
    assert np.array_equal(layout.unpack4(packed, scales, width), whole)
    assert np.abs(whole).max() <= 127  # so that a standard 8-bit operator can stand in
    k, n = 32 * blocks - 1, width - 1
    byte = packed[n // 16, k // 32, k % 16 // 4, n % 16 * 4 + k % 4]
    assert int(byte) // 16 - 8 == values[k, n]  # the last k lies in the high half


@pytest.mark.parametrize(
    ("values", "multipliers"),
    [((33, 1), (1, 1)), ((32, 2), (1, 1)), ((32, 1, 8), (1, 1)), ((32, 1), (1, 1, 19))],
)
def test_what_does_not_fit_is_refused(
    values: tuple[int, ...], multipliers: tuple[int, ...]
) -> None:
    filled = [
        np.full(shape[:2], shape[2] if len(shape) > 2 else 1) for shape in (values, multipliers)
    ]
    with pytest.raises(ValueError, match="4-bit"):
        layout.pack4(*filled)
    with pytest.raises(ValueError, match="8-bit"):
        layout.pack8(np.full((4, 1), 128))
    with pytest.raises(ValueError, match="8-bit"):
        layout.pack8(np.ones((6, 1), np.int64))


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 90), st.integers(0, 2**31))
def test_the_reference_is_a_product(rows: int, inner: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, inner)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
    weight = rng.integers(-127, 128, (inner, 7))
    scale, bias = rng.random(7, np.float32), rng.standard_normal(7).astype(np.float32)
    found = reference.linear(x, weight, scale, bias)
    exact = x.astype(np.float64) @ weight * scale + bias
    step = np.abs(x).max(axis=1, keepdims=True) / 127  # of the grid that rows are rounded to
    limit = 0.5001 * step * np.abs(weight).sum(axis=0) * scale + 1e-5 * np.abs(exact) + 1e-5
    assert (np.abs(found - exact) <= limit).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_row_alone(bad: float) -> None:
    x = np.ones((3, 8), np.float32)
    x[1, 3] = bad
    found = reference.linear(x, np.ones((8, 2), np.int64), np.ones(2, np.float32))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def _exact(y: np.ndarray, activation: str) -> np.ndarray:
    y = y.astype(np.float64)
    if activation == "relu":
        return np.maximum(y, 0)
    if activation == "gelu":
        return y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    slope = 1.702 * y
    if activation == "gelu_tanh":
        slope = 2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    return np.asarray(y * 0.5 * (1 + np.tanh(slope / 2)))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_activations_are_what_they_are_called(activation: str) -> None:
    rng = np.random.default_rng(7)
    y = np.concatenate([np.linspace(-30, 30, 60001), rng.standard_normal(20000)])
    y = np.concatenate([y, y * 1e-3, [1e6, -1e6, 3e38, -3e38]]).astype(np.float32)
    error = np.abs(activate(y, activation) - _exact(y, activation))
    assert (error / np.maximum(1, np.abs(y))).max() <= 4e-7
    assert np.isnan(activate(np.array([np.nan], np.float32), activation)).all()


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="swish"):
        activate(np.zeros(1, np.float32), "swish")


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 1300), st.integers(0, 2**31))
def test_top_logits_are_those_of_a_sort(rows: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.integers(-40, 40, (rows, width)) / 4).astype(np.float32)  # many are equal
    count = min(width, 9)
    ids, best, log_sum_exp = reference.top_logits(logits, count)
    for row in range(rows):
        order = sorted(range(width), key=lambda i: (-logits[row, i], i))[:count]
        assert ids[row].tolist() == order
        assert best[row].tolist() == logits[row, order].tolist()
    exact = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(log_sum_exp, exact, rtol=3e-7, atol=5e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_shows(bad: float) -> None:
    logits = np.zeros((2, 600), np.float32)
    logits[1, 577] = bad
    ids, best, log_sum_exp = reference.top_logits(logits, 2)
    assert np.isfinite(log_sum_exp[0])
    assert np.isnan(log_sum_exp[1])
    assert ids[1].tolist() == ([0, 1] if np.isnan(bad) else [577, 0])
    assert not np.isnan(best).any()
