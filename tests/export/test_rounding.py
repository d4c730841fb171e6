"""Weights in 4 bits: what is allowed, and that error feedback by activations is worth its time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.export.calibration import Observed
from primelens.export.rounding import Rounded, calibrated4, round4
from primelens.kernels import layout

SEEDS = st.integers(0, 2**31)


def problem(seed: int, inner: int, width: int) -> tuple[Any, Any]:
    """Correlated activations ``[800, K]`` of unequal size, and a weight ``[K, N]``."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((inner, inner)) / np.sqrt(inner)
    mixed *= np.exp(rng.standard_normal(inner))
    x = rng.standard_normal((800, inner)) @ mixed + 0.1 * rng.standard_normal((800, inner))
    weight = rng.standard_normal((inner, width)) * np.exp(rng.standard_normal(width) / 2)
    return x.astype(np.float32), weight.astype(np.float32)


def error(rounded: Rounded, x: Any, weight: Any) -> float:
    """Of the product, relative to its spread."""
    wanted = x @ weight
    return float(np.sqrt(((x @ rounded.values() - wanted) ** 2).mean()) / wanted.std())


def halves(x: Any) -> tuple[Any, Any]:
    """The Hessian of the first half, and the second half to judge by."""
    first, second = x[: len(x) // 2], x[len(x) // 2 :]
    return first.T @ first / len(first), second


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([32, 64, 160]), st.sampled_from([1, 17, 48]))
def test_feedback_beats_rounding_to_the_nearest(seed: int, inner: int, width: int) -> None:
    """On activations that it was not calibrated by."""
    x, weight = problem(seed, inner, width)
    hessian, unseen = halves(x)
    nearest, fed_back = round4(weight), calibrated4(weight, hessian)
    assert error(fed_back, unseen, weight) < 0.9 * error(nearest, unseen, weight)
    for rounded in (nearest, fed_back):
        assert rounded.multipliers is not None
        layout.pack4(rounded.integers, rounded.multipliers)  # in range
        assert np.isfinite(rounded.scale).all()
        assert (rounded.scale > 0).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 1e-20, 1e-3, 1e6]))
def test_rounding_to_the_nearest_is_off_by_little(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (size * rng.standard_normal((64, 9))).astype(np.float32)
    spread = np.sqrt((weight.astype(np.float64) ** 2).mean())
    off = np.sqrt(((round4(weight).values().astype(np.float64) - weight) ** 2).mean())
    assert off <= 0.15 * spread


@pytest.mark.parametrize("wrong", ["another order", "no order", "sign", "damping"])
def test_a_mistake_in_the_feedback_shows(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above must see a Hessian that is not the activations'."""
    x, weight = problem(5, 160, 48)
    hessian, unseen = halves(x)
    right = error(calibrated4(weight, hessian), unseen, weight)
    if wrong == "another order":
        hessian = np.roll(np.roll(hessian, 1, axis=0), 1, axis=1)
    elif wrong == "no order":
        hessian = np.diag(hessian.diagonal())
    elif wrong == "sign":
        signs = np.where(np.arange(160) % 2, 1.0, -1.0)
        hessian = hessian * signs[:, None] * signs
    found = calibrated4(weight, hessian, damping=1e6 if wrong == "damping" else 0.01)
    assert error(found, unseen, weight) > 1.1 * right


def test_inputs_that_were_never_seen_are_rounded_all_the_same() -> None:
    x, weight = problem(3, 64, 16)
    x[:, 10:20] = 0
    rounded = calibrated4(weight, x.T @ x / len(x))
    assert np.abs(rounded.values()[10:20] - weight[10:20]).max() < 0.5 * np.abs(weight).max()
    nothing = calibrated4(weight, np.zeros((64, 64), np.float32))
    assert np.isfinite(nothing.values()).all()


def test_outer_products_are_summed() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 3, 8)), rng.standard_normal((4, 8))
    observed = Observed()
    observed.add("x", first.astype(np.float32))
    observed.add("x", second.astype(np.float32))
    rows = np.concatenate([first.reshape(-1, 8), second])
    found = observed.mean("x")
    assert found is not None
    np.testing.assert_allclose(found, rows.T @ rows / 10, rtol=1e-5, atol=1e-6)
    assert observed.mean("y") is None
