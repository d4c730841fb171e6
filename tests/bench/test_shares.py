"""How much of the machine's limits was used, request by request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from primelens.bench.bandwidth import Limits
from primelens.bench.shares import Work, shares_of
from primelens.bench.step_bytes import StepBytes
from primelens.bench.system import Answer, Request, Sample

LIMITS = Limits(2, 10e9, 100e9, None)
WORK = Work(20 * 10**9, 0, 0, 0, StepBytes(80_000_000, 2_000_000, 18_000_000), 5, "fp32")


def together(batch: int, tower: float, gap: float, *, scenario: str = "server") -> list[Sample]:
    """A batch of requests whose tower and steps are told to each of them."""
    times = (1.0, 1.0 + gap, 1.0 + 2 * gap)
    answer = Answer(0, "a", (1, 2, 3), times, {"tower": tower})
    blank = Sample("s", scenario, "forced", 0, Request(0, "p"), answer, 0.0, 0.0, times[-1], batch)
    return [blank] * batch


def test_a_machine_at_its_limits_is_at_one() -> None:
    """20 GFLOP at 100 GFLOP/s: 0.2 s a picture. 100 MB at 10 GB/s: 10 ms; of three, 140 MB."""
    assert shares_of(together(1, 0.2, 0.010), LIMITS, WORK, precision="fp32") == pytest.approx(
        {"tower": 1.0, "step": 1.0}
    )
    assert shares_of(together(3, 0.6, 0.014), LIMITS, WORK, precision="fp32") == pytest.approx(
        {"tower": 1.0, "step": 1.0}
    )


def test_arrivals_that_went_together_count_as_what_they_were() -> None:
    """Open loop, up to 16 together, mostly alone: no share passes what the machine can do."""
    samples = [
        *together(1, 0.25, 0.0125),
        *together(1, 0.25, 0.0125),
        *together(5, 1.25, 0.0225),
        *together(2, 0.50, 0.0150),
    ]
    found = shares_of(samples, LIMITS, WORK, precision="fp32")
    assert found == pytest.approx({"tower": 0.8, "step": 0.8})


def test_what_memory_does_not_limit_gets_no_share_of_it() -> None:
    samples = together(1, 0.2, 0.010)
    roomy = replace(LIMITS, cache=64 * 2**20)
    assert shares_of(samples, roomy, WORK, precision="fp32").keys() == {"tower"}
    small = replace(LIMITS, cache=32 * 2**20)
    assert shares_of(samples, small, WORK, precision="fp32").keys() == {"tower", "step"}


def test_steps_of_another_precision_read_other_bytes() -> None:
    samples = together(1, 0.2, 0.010)
    assert shares_of(samples, LIMITS, WORK, precision="int8").keys() == {"tower"}


def test_failures_and_silent_systems_have_no_share() -> None:
    failed = [replace(s, answer=Answer(0, error="no")) for s in together(2, 0.2, 0.01)]
    assert shares_of(failed, LIMITS, WORK, precision="fp32") == {}
