"""The layouts and the NumPy reference against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.kernels import layout, reference


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
