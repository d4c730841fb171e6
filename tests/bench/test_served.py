from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import primelens
from primelens.bench.served import _shared
from primelens.results import Caption, Timings


@pytest.fixture(scope="module")
def caption() -> Caption:
    model = primelens.load()
    return model.caption(np.zeros((64, 64, 3), np.uint8))


def timed(caption: Caption, *times: dict[str, float]) -> list[Caption]:
    return [replace(caption, timings=Timings(**time)) for time in times]


def test_connectors_of_a_batch_are_added_up_and_are_no_steps(caption: Caption) -> None:
    """Three pictures: connectors 10, 20 and 30 ms, then 100 ms of steps for all of them."""
    rows = timed(
        caption,
        {"preprocess": 0.001, "tower": 0.5, "connector": 0.01, "step": 0.02 + 0.03 + 0.1},
        {"preprocess": 0.002, "tower": 0.5, "connector": 0.02, "step": 0.03 + 0.1},
        {"preprocess": 0.003, "tower": 0.5, "connector": 0.03, "step": 0.1},
    )
    found = _shared(rows, one_by_one=True)
    assert found == pytest.approx({"preprocess": 6.0, "connector": 60.0, "step": 100.0})


def test_what_ran_for_the_whole_batch_is_left_as_it_is_told(caption: Caption) -> None:
    one: dict[str, Any] = {"preprocess": 0.001, "connector": 0.05, "step": 0.1}
    assert _shared(timed(caption, one, one), one_by_one=False) == {"preprocess": 2.0}
    assert _shared([], one_by_one=True) == {}
