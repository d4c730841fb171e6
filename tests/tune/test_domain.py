"""Domain scores by hand."""

import numpy as np
import pytest

from primelens.tune.domain import auroc, fit_domain, pool


def test_auroc_by_hand() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1.0
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 0.0
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([0.0, 2.0]), np.array([1.0, 3.0])) == 0.75


def test_distance_is_one_at_home_and_large_far_away() -> None:
    known = np.random.default_rng(0).normal(3.0, 2.0, (2000, 16)).astype(np.float32)
    fit = fit_domain(known, false_alarms=0.05)
    distances = fit.distance(known)
    assert distances.mean() == pytest.approx(1.0, abs=0.05)
    assert (distances > fit.threshold).mean() == pytest.approx(0.05, abs=0.005)
    assert (fit.distance(known + 20.0) > fit.threshold).all()


def test_pooling() -> None:
    states = np.array([[[1.0, 2.0], [3.0, 2.0]]])
    assert pool(states).tolist() == [[2.0, 2.0, 1.0, 0.0]]


def test_too_few_pictures() -> None:
    with pytest.raises(ValueError, match="100"):
        fit_domain(np.zeros((99, 4)))
