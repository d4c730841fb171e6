from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.bench.figures import (
    Objective,
    end_to_end,
    goodput,
    inter_token_gaps,
    latency_blocks,
    stage_split,
    summarise,
    throughput,
    time_per_output_token,
    time_to_first_token,
)
from primelens.bench.system import Answer, Request, Sample


def sample(
    scheduled: float,
    started: float,
    times: tuple[float, ...],
    ended: float,
    *,
    block: int = 0,
    error: str | None = None,
    stages: dict[str, float] | None = None,
    batch: int = 1,
) -> Sample:
    answer = Answer(0, "a", tuple(range(len(times))), times, stages or {}, error)
    return Sample(
        "s", "single", "natural", block, Request(0, "p"), answer, scheduled, started, ended, batch
    )


def test_latencies_of_one_request_by_hand() -> None:
    """Due at 10.0, begun at 10.5, tokens at 11.0, 11.2, 11.5, answered at 11.6."""
    one = sample(10.0, 10.5, (11.0, 11.2, 11.5), 11.6)
    assert end_to_end(one) == pytest.approx(1.6)
    assert time_to_first_token(one) == pytest.approx(1.0)  # from the schedule, not from the start
    assert time_per_output_token(one) == pytest.approx(0.3)  # (1.6 - 1.0) / (3 - 1)
    assert inter_token_gaps(one) == pytest.approx([0.2, 0.3])


def test_what_a_system_does_not_tell_is_not_made_up() -> None:
    silent = sample(10.0, 10.0, (), 11.0)
    assert time_to_first_token(silent) is None
    assert time_per_output_token(silent) is None
    assert inter_token_gaps(silent) == []
    single = sample(10.0, 10.0, (10.5,), 11.0)
    assert time_per_output_token(single) is None  # one token has no time per further token


def test_throughput_by_hand() -> None:
    """Three answers of 2, 2 and 4 tokens from 0 to 4 s, and a failure."""
    samples = [
        sample(0.0, 0.0, (0.5, 1.0), 1.0),
        sample(1.0, 1.0, (1.5, 2.0), 2.0),
        sample(2.0, 2.0, (), 2.5, error="broken"),
        sample(2.5, 2.5, (2.6, 2.8, 3.0, 4.0), 4.0),
    ]
    assert throughput(samples) == {"images_per_s": 0.75, "tokens_per_s": 2.0}
    assert throughput([]) == {"images_per_s": 0.0, "tokens_per_s": 0.0}


def test_goodput_by_hand() -> None:
    """Of four, one is late, one failed; two in 4 s met the objective."""
    samples = [
        sample(0.0, 0.0, (0.2,), 1.0),
        sample(1.0, 1.0, (1.2,), 2.5),
        sample(2.0, 2.0, (), 2.1, error="broken"),
        sample(3.0, 3.0, (3.9,), 4.0),
    ]
    assert goodput(samples, Objective(e2e=1.0)) == {"share": 0.5, "images_per_s": 0.5}
    assert goodput(samples, Objective(ttft=0.5)) == {"share": 0.5, "images_per_s": 0.5}
    assert goodput(samples, Objective(e2e=1.0, ttft=0.5))["share"] == 0.25
    assert goodput([], Objective(e2e=1.0)) == {"share": 0.0, "images_per_s": 0.0}


def test_what_the_stages_leave_is_named() -> None:
    told = {"preprocess": 0.1, "tower": 0.4, "step": 0.2}
    split = stage_split([sample(0.0, 1.0, (2.0,), 2.0, stages=told)])
    assert split["tower"] == 0.4
    assert split["connector"] == 0.0
    assert split["other"] == pytest.approx(0.3)  # 1.0 from start to end, queueing is no stage
    assert sum(split.values()) == pytest.approx(1.0)


def test_a_batchs_stages_are_shared_out_among_its_requests() -> None:
    """Three went together: tower 0.6 s and answer 1.2 s are one run, not three."""
    together = [
        sample(0.0, 1.0, (2.2,), 2.2, stages={"tower": 0.6, "step": 0.3}, batch=3) for _ in range(3)
    ]
    alone = sample(3.0, 3.0, (3.8,), 3.8, stages={"tower": 0.4}, batch=1)
    split = stage_split([*together, alone])
    assert split["tower"] == pytest.approx((0.6 + 0.4) / 4)
    assert sum(split.values()) == pytest.approx((1.2 + 0.8) / 4)


def test_a_summary_counts_failures_and_leaves_them_out() -> None:
    samples = [sample(float(i), float(i), (i + 0.1, i + 0.5), i + 0.5) for i in range(4)]
    samples.append(sample(4.0, 4.0, (), 9.0, error="broken"))
    found = summarise(samples)
    assert found["requests"] == 5
    assert found["failures"] == 1
    assert found["errors"] == ["broken"]
    assert found["seconds"]["e2e"]["p50"] == pytest.approx(0.5)
    assert found["seconds"]["e2e"]["samples"] == 4
    assert found["seconds"]["ttft"]["p99"] == pytest.approx(0.1)
    assert found["seconds"]["tpot"]["mean"] == pytest.approx(0.4)
    assert "goodput" not in found


def test_throughput_of_a_summary_is_the_median_blocks() -> None:
    """Other systems' blocks lie between; their time is not this system's."""
    samples = [
        *(sample(i, i, (i + 1.0,), i + 1.0, block=0) for i in (0.0, 1.0)),
        *(sample(i, i, (i + 2.0,), i + 2.0, block=1) for i in (50.0, 52.0)),
        *(sample(i, i, (i + 4.0,), i + 4.0, block=2) for i in (90.0, 94.0)),
    ]
    assert summarise(samples)["images_per_s"] == pytest.approx(0.5)


def test_blocks_come_in_order_without_failures() -> None:
    samples = [
        sample(5.0, 5.0, (), 7.0, block=1),
        sample(0.0, 0.0, (), 1.0, block=0),
        sample(7.0, 7.0, (), 8.0, block=1, error="broken"),
    ]
    assert latency_blocks(samples) == [[1.0], [2.0]]


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 10), min_size=2, max_size=30), st.floats(0, 5), st.floats(0, 1e3))
def test_first_token_and_the_others_make_the_whole(
    gaps: list[float], waiting: float, begin: float
) -> None:
    """E2E = TTFT + (n - 1) x TPOT, and with an answer at the last token TPOT is the mean gap."""
    times, now = [], begin + waiting
    for gap in gaps:
        now += gap
        times.append(now)
    one = sample(begin, begin + waiting, tuple(times), times[-1])
    first, rest = time_to_first_token(one), time_per_output_token(one)
    assert first is not None
    assert rest is not None
    assert first + (len(times) - 1) * rest == pytest.approx(end_to_end(one))
    assert sum(inter_token_gaps(one)) / (len(times) - 1) == pytest.approx(rest, rel=1e-6, abs=1e-9)
