from __future__ import annotations

import itertools

import pytest

from primelens.bench import bandwidth
from primelens.bench.bandwidth import Limits, best_seconds, measure_limits, read_rates


def test_the_shortest_call_after_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(clock))
    calls = itertools.count()
    assert best_seconds(lambda: next(calls), 3) == 2.0
    assert next(calls) == 4  # one more than the three that count


def test_every_way_of_reading_is_timed_over_all_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def one_second(call: object, repetitions: int) -> float:
        nonlocal read
        assert repetitions == 2
        call()  # type: ignore[operator]
        read += 1
        return 1.0

    monkeypatch.setattr(bandwidth, "best_seconds", one_second)
    rates = read_rates(2, size=1 << 20, repetitions=2)
    assert set(rates.values()) == {float(1 << 20)}
    assert read == len(rates) >= 4


def test_a_reduction_reads_every_part() -> None:
    """Each way sees every value: change one, and the result changes."""
    import numpy as np

    for name, reduction in bandwidth._REDUCTIONS.items():
        part = np.full(4096, 0.5, np.float32)
        before = reduction(part)
        for place in (0, 1777, 4095):
            changed = part.copy()
            changed[place] = 3.0
            assert reduction(changed) != before, name


def test_limits_are_measured_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_LEAST_BUFFER", 1 << 20)
    monkeypatch.setattr(bandwidth, "last_level_cache", lambda: 0)
    monkeypatch.setattr(
        bandwidth,
        "multiply_rates",
        lambda *_, **__: (
            {"fp32:NumPy": 5e9, "fp32:ONNX Runtime": 7e9, "int8:ONNX Runtime": 9e9},
            {},
        ),
    )
    found = measure_limits(1, quick=True)
    assert found.fp32_flop_per_s == 7e9
    assert found.int8_op_per_s == 9e9
    assert found.read_bytes_per_s == max(v for k, v in found.ways.items() if k.startswith("read:"))
    assert found.lines()[1] == "fp32 product  7 GFLOP/s (ONNX Runtime)"


def test_products_give_a_rate_and_are_right() -> None:
    rates, missing = bandwidth.multiply_rates(1, size=64, repetitions=1)
    assert missing == {}
    assert set(rates) == {"fp32:NumPy, 64", "fp32:ONNX Runtime, 64", "int8:ONNX Runtime, 64"}
    assert min(rates.values()) > 0
    (product,) = bandwidth._engine_product("int8", 64, 1)()  # type: ignore[misc]
    assert product.shape == (64, 64)
    assert str(product.dtype) == "int32"


def test_the_limits_of_a_run_are_the_best_that_was_seen_in_it() -> None:
    before = Limits(2, 3e10, 1e11, None, {"read:sum": 3e10, "fp32:NumPy": 1e11}, {"int8": "no"})
    after = Limits(2, 4e10, 9e10, None, {"read:sum": 4e10, "fp32:NumPy": 9e10}, {"int8": "no"})
    both = before.best_of(after)
    assert (both.read_bytes_per_s, both.fp32_flop_per_s) == (4e10, 1e11)
    assert both.int8_op_per_s is None
    assert both.missing == {"int8": "no"}


def test_what_was_not_measured_is_said() -> None:
    limits = Limits(
        2, 3e10, 1e11, None, {"read:sum": 3e10, "fp32:NumPy": 1e11}, {"int8": "no onnx"}
    )
    assert limits.lines()[2:] == ["int8 product  not measured", "int8: no onnx"]
