from __future__ import annotations

import pytest

from primelens.bench.cold_weights import copies_for, time_in_turns


def test_a_pass_exceeds_the_cache_four_times() -> None:
    assert copies_for(10, cache=100) == 40
    assert copies_for(7, cache=100) == 58  # 57.1: one more
    assert copies_for(10**9, cache=100) == 3  # large ones still take turns
    assert copies_for(4096) >= 3
    with pytest.raises(ValueError, match="without weights"):
        copies_for(0)


def test_no_weight_is_seen_twice_before_all_others_were() -> None:
    log: list[str] = []
    now = 0.0

    def work(name: str, seconds: float) -> None:
        nonlocal now
        log.append(name)
        now += seconds

    calls = {
        "a": [lambda i=i: work(f"a{i}", 1.0 + i) for i in range(3)],
        "b": [lambda i=i: work(f"b{i}", 0.5) for i in range(2)],
    }
    found = time_in_turns(calls, blocks=2, clock=lambda: now)
    assert log == ["a0", "a1", "a2", "b0", "b1"] * 3  # the first round warms up
    assert found == {"a": [[1.0, 2.0, 3.0]] * 2, "b": [[0.5, 0.5]] * 2}
