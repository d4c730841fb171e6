from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.bench.fake import FakeSystem
from primelens.bench.figures import end_to_end, time_to_first_token
from primelens.bench.scenarios import Load, drive, poisson_arrivals
from primelens.bench.system import Answer, Request, Sample, SimulatedClock

BLANK = Sample("s", "x", "forced", 0, Request(0, ""), Answer(0), 0.0, 0.0, 0.0)


def requests(count: int, tokens: int = 1) -> list[Request]:
    return [Request(i, f"p{i}", max_new_tokens=tokens, forced=True) for i in range(count)]


def run(load: Load, count: int, **fake: float) -> list[Sample]:
    clock = SimulatedClock(start=100.0)
    return drive(FakeSystem("s", clock, **fake), requests(count), load, clock, BLANK)  # type: ignore[arg-type]


def test_single_sends_the_next_when_the_last_is_answered() -> None:
    samples = run(Load("single"), 3, tower=2.0, step=0.0)
    assert [s.scheduled for s in samples] == [100.0, 102.0, 104.0]
    assert [end_to_end(s) for s in samples] == [2.0, 2.0, 2.0]


def test_multi_answers_a_query_as_a_whole() -> None:
    samples = run(Load("multi", batch=2), 4, tower=1.0, step=0.0)
    assert [s.scheduled for s in samples] == [100.0, 100.0, 102.0, 102.0]
    assert [s.batch for s in samples] == [2, 2, 2, 2]


def test_offline_counts_from_the_start() -> None:
    """All are due at once: the last one's latency is the time of the whole."""
    samples = run(Load("offline", batch=2), 5, tower=1.0, step=0.0)
    assert [s.batch for s in samples] == [2, 2, 2, 2, 1]
    assert [end_to_end(s) for s in samples] == [2.0, 2.0, 4.0, 4.0, 5.0]


def test_an_open_loop_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrivals at 1, 2, 3 and 10 s; 4 s each, one by one: they queue, and the wait counts."""
    monkeypatch.setattr(
        "primelens.bench.scenarios.poisson_arrivals", lambda *_: [1.0, 2.0, 3.0, 10.0]
    )
    samples = run(Load("server", rate=1.0), 4, tower=4.0, step=0.0)
    assert [s.scheduled for s in samples] == [101.0, 102.0, 103.0, 110.0]
    assert [s.started for s in samples] == [101.0, 105.0, 109.0, 113.0]
    assert [end_to_end(s) for s in samples] == [4.0, 7.0, 10.0, 7.0]
    assert [time_to_first_token(s) for s in samples] == [4.0, 7.0, 10.0, 7.0]


def test_what_has_arrived_meanwhile_goes_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrivals at 1, 2, 3 and 20 s; a batch of n takes 4 n s."""
    monkeypatch.setattr(
        "primelens.bench.scenarios.poisson_arrivals", lambda *_: [1.0, 2.0, 3.0, 20.0]
    )
    samples = run(Load("server", rate=1.0, batch=8), 4, tower=4.0, step=0.0)
    assert [s.batch for s in samples] == [1, 2, 2, 1]
    assert [s.started for s in samples] == [101.0, 105.0, 105.0, 120.0]
    assert [end_to_end(s) for s in samples] == [4.0, 11.0, 10.0, 4.0]


def test_a_stall_is_seen_by_all_who_waited_for_it() -> None:
    """No coordinated omission: a closed loop sees one slow request, an open loop a queue."""

    class Stalling(FakeSystem):
        def answer(self, requests):  # type: ignore[no-untyped-def]
            if requests[0].index == 10:
                self._clock.advance(50.0)
            return super().answer(requests)

    def slow(load: Load) -> int:
        clock = SimulatedClock()
        system = Stalling("s", clock, tower=0.1, step=0.0)
        samples = drive(system, requests(100), load, clock, BLANK)
        return sum(end_to_end(s) > 1.0 for s in samples)

    assert slow(Load("single")) == 1
    assert slow(Load("server", rate=5.0)) > 80


@settings(deadline=None)
@given(st.floats(0.5, 50), st.integers(1, 200), st.integers(0, 9))
def test_arrivals_rise_and_do_not_depend_on_the_system(rate: float, count: int, seed: int) -> None:
    arrivals = poisson_arrivals(rate, count, seed)
    assert len(arrivals) == count
    assert all(b > a for a, b in pairwise(arrivals))
    assert arrivals == poisson_arrivals(rate, count, seed)


def test_arrivals_are_poisson() -> None:
    """Exponential gaps: mean 1/rate, deviation as large as the mean, 1/e of them above it."""
    gaps = np.diff(poisson_arrivals(4.0, 20_000, 0))
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    assert (gaps > 0.25).mean() == pytest.approx(np.exp(-1), abs=0.01)


@settings(deadline=None)
@given(
    st.sampled_from(["single", "multi", "server", "offline"]),
    st.integers(1, 30),
    st.integers(1, 7),
)
def test_every_request_is_answered_once_and_in_time_order(
    kind: str, count: int, batch: int
) -> None:
    load = Load(kind, batch=batch, rate=3.0 if kind == "server" else None)
    samples = run(load, count, tower=0.2, step=0.0)
    assert [s.request.index for s in samples] == list(range(count))
    for one in samples:
        assert one.scheduled <= one.started <= one.ended


def test_a_system_that_mixes_up_answers_fails_them() -> None:
    class Mixing(FakeSystem):
        def answer(self, requests):  # type: ignore[no-untyped-def]
            return super().answer(requests)[::-1]

    clock = SimulatedClock()
    samples = drive(Mixing("s", clock), requests(2), Load("multi", batch=2), clock, BLANK)
    assert all(s.answer.error for s in samples)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scenario": "burst"}, "known: single, multi"),
        ({"scenario": "single", "batch": 0}, "at least 1"),
        ({"scenario": "server"}, "rate"),
        ({"scenario": "single", "rate": 2.0}, "rate"),
        ({"scenario": "server", "rate": -1.0}, "positive"),
    ],
)
def test_an_impossible_load_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Load(**fields)  # type: ignore[arg-type]
