from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from primelens.store.codec import Stored, stored
from primelens.store.key import StoredDtype

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=7), elements=FLOATS)
DTYPES = st.sampled_from(["fp32", "fp16", "int8"])


def same_bits(one: Any, other: Any) -> bool:
    return (
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    )


@given(ARRAYS)
def test_fp32_keeps_every_bit(values: Any) -> None:
    kept = stored(values, "fp32")
    assert same_bits(kept.restore(), values)
    assert kept.error(values) == (0.0, 0.0)


@given(arrays(np.float32, (3, 5), elements=st.floats(-65000, 65000, width=32)))
def test_fp16_is_the_nearest_half(values: Any) -> None:
    assert same_bits(stored(values, "fp16").restore(), values.astype(np.float16).astype(np.float32))


def test_every_finite_half_is_widened_as_numpy_does() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    assert same_bits(Stored(halves).restore(), halves.astype(np.float32))
    odd = halves[: 2 * (halves.size // 2)].reshape(2, -1)[:, ::3]  # not contiguous
    assert same_bits(Stored(odd).restore(), odd.astype(np.float32))


@pytest.mark.parametrize("value", [65520.0, 1e30, -7e4])
def test_what_no_half_can_hold_is_kept_exactly(value: float) -> None:
    values = np.array([[1.0, value]], np.float32)
    assert same_bits(stored(values, "fp16").restore(), values)
    largest = np.array([[65519.99, -65519.99]], np.float32)
    assert np.isfinite(stored(largest, "fp16").restore()).all()


@given(ARRAYS)
def test_int8_is_off_by_at_most_half_a_level_of_its_row(values: Any) -> None:
    restored = stored(values, "int8").restore().astype(np.float64)
    level = np.abs(values.astype(np.float64)).max(axis=-1, keepdims=True, initial=0.0) / 127
    assert restored.shape == values.shape
    tiny = 128 * np.finfo(np.float32).tiny  # rows below it become zeros
    assert (np.abs(restored - values) <= np.maximum(level * 0.50001, tiny)).all()


@given(ARRAYS, DTYPES)
def test_storing_what_was_restored_changes_nothing_more(values: Any, dtype: StoredDtype) -> None:
    """Not demanded for int8, whose scales round; there the arrays survive their own round trip."""
    kept = stored(values, dtype)
    restored = kept.restore()
    assert same_bits(Stored.of(kept.arrays).restore(), restored)
    if dtype != "int8":
        assert same_bits(stored(restored, dtype).restore(), restored)


@given(arrays(np.float32, (40, 30), elements=st.floats(-1e4, 1e4, width=32)), DTYPES)
def test_the_error_is_what_float64_measures(values: Any, dtype: StoredDtype) -> None:
    kept = stored(values, dtype)
    difference = kept.restore().astype(np.float64) - values
    rms = np.sqrt((values.astype(np.float64) ** 2).mean())
    wanted = np.sqrt((difference**2).mean()) / rms if rms else 0.0
    largest, relative = kept.error(values)
    assert largest == pytest.approx(np.abs(difference).max(), rel=1e-6, abs=1e-30)
    assert relative == pytest.approx(wanted, rel=1e-4, abs=1e-12)


def test_the_error_of_a_large_array_is_summed_over_its_blocks() -> None:
    values = np.random.default_rng(0).standard_normal((577, 768)).astype(np.float32)
    difference = stored(values, "int8").restore().astype(np.float64) - values
    largest, relative = stored(values, "int8").error(values)
    assert largest == pytest.approx(np.abs(difference).max(), rel=1e-6)
    assert relative == pytest.approx(np.sqrt((difference**2).sum() / (values.astype(np.float64) ** 2).sum()), rel=1e-5)  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_what_is_not_finite_is_refused(bad: float, dtype: StoredDtype) -> None:
    with pytest.raises(ValueError, match="not finite"):
        stored(np.array([1.0, bad], np.float32), dtype)


def test_other_types_and_scalars_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        stored(np.zeros(3), "fp32")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float32 \\[\\]"):
        stored(np.zeros((), np.float32), "fp32")


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"values": np.zeros(3)},
        {"values": np.zeros((2, 3), np.int8)},
        {"values": np.zeros((2, 3), np.int8), "scales": np.zeros(3, np.float32)},
        {"values": np.zeros((2, 3), np.float32), "scales": np.zeros(2, np.float32)},
        {"values": np.zeros((2, 3), np.float32), "more": np.zeros(2, np.float32)},
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(arrays: Any) -> None:
    with pytest.raises(ValueError, match="values"):
        Stored.of(arrays)


def test_what_is_restored_cannot_be_written_to() -> None:
    for dtype in ("fp32", "fp16", "int8"):
        restored = stored(np.ones((2, 2), np.float32), dtype).restore()  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="read-only"):
            restored[0, 0] = 2


def test_stored_values_do_not_share_memory_with_the_callers() -> None:
    values = np.ones((2, 2), np.float32)
    restored = stored(values, "fp32").restore()
    values[:] = 7
    assert (restored == 1).all()
