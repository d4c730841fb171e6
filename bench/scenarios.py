"""The ways of loading a system, with the names and meanings of MLPerf Inference.

MLPerf-style, unofficial: the definitions are MLPerf's, the runs are not submissions.

* ``single``: one stream; the next request starts when the last is answered. Figure: latency.
* ``multi``: a query of N pictures at once, the next when all are answered. Figure: query latency.
* ``server``: Poisson arrivals, drawn before the run and independent of it (an *open loop*); latency
  counts from the scheduled arrival, so that a stall is seen by everyone who had to wait for it (no
  coordinated omission). What has arrived meanwhile goes as one batch, up to a limit.
* ``offline``: all pictures are there from the start, in batches. Figure: throughput.

A driver takes a system, requests and a clock, and returns samples; it knows nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from primelens.bench.system import Answer, Clock, Request, Sample, System

__all__ = ["SETTLING", "Load", "drive", "poisson_arrivals", "settle", "turn_order"]

SETTLING = 0.2
"""Seconds between the last answer of one system and the first request to the next."""


@dataclass(frozen=True)
class Load:
    """How a system is loaded.

    Attributes:
        scenario: ``single``, ``multi``, ``server`` or ``offline``.
        batch: pictures per query (``multi``) or batch (``offline``), the most of one (``server``).
        rate: arrivals per second (``server``).
        seed: of the arrivals; the same for all systems of a run.
    """

    scenario: str
    batch: int = 1
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scenario not in _DRIVERS:
            raise ValueError(f"scenario is {self.scenario!r}; known: {', '.join(_DRIVERS)}")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be at least 1")
        if (self.scenario == "server") != (self.rate is not None):
            raise ValueError("rate belongs to the scenario server, which needs it")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate is {self.rate}; it must be positive")


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """``count`` arrival times in seconds from the start: exponential gaps of mean ``1 / rate``."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return [float(moment) for moment in np.cumsum(gaps)]


def drive(
    system: System, requests: Sequence[Request], load: Load, clock: Clock, sample: Sample
) -> list[Sample]:
    """Put ``requests`` to ``system`` as ``load`` says.

    Args:
        sample: carries the fields that all samples of this call share (system, block, …).

    Returns:
        One sample per request, in order of completion.
    """
    return _DRIVERS[load.scenario](system, requests, load, clock, sample)


def turn_order(names: Iterable[str], block: int) -> list[str]:
    """Who comes when in a block: everybody has every place equally often (A B, B A, A B, …)."""
    found = list(names)
    first = block % len(found) if found else 0
    return found[first:] + found[:first]


def settle(clock: Clock) -> None:
    """Wait until the system that had its turn is really idle.

    Engines' idle threads go on looking for work (ONNX Runtime's for about 0.1 s) and would take the
    cores from whoever comes next: a bundle was 1.2 times as slow as itself when it came second.
    """
    clock.sleep_until(clock.now() + SETTLING)


def _hand_over(
    system: System, batch: Sequence[Request], scheduled: Sequence[float], clock: Clock, base: Sample
) -> list[Sample]:
    started = clock.now()
    answers = system.answer(batch)
    ended = clock.now()
    if [answer.index for answer in answers] != [request.index for request in batch]:
        answers = [Answer(r.index, error="the system lost or mixed up answers") for r in batch]
    return [
        replace(
            base,
            request=request,
            answer=answer,
            scheduled=moment,
            started=started,
            ended=ended,
            batch=len(batch),
        )
        for request, answer, moment in zip(batch, answers, scheduled, strict=True)
    ]


def _closed_loop(
    system: System, requests: Sequence[Request], load: Load, clock: Clock, base: Sample
) -> list[Sample]:
    """Single and multi: a query is scheduled when the one before is answered."""
    size = 1 if load.scenario == "single" else load.batch
    samples: list[Sample] = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        samples += _hand_over(system, batch, [clock.now()] * len(batch), clock, base)
    return samples


def _offline(
    system: System, requests: Sequence[Request], load: Load, clock: Clock, base: Sample
) -> list[Sample]:
    """All requests are due at the start."""
    due = clock.now()
    samples: list[Sample] = []
    for start in range(0, len(requests), load.batch):
        batch = requests[start : start + load.batch]
        samples += _hand_over(system, batch, [due] * len(batch), clock, base)
    return samples


def _server(
    system: System, requests: Sequence[Request], load: Load, clock: Clock, base: Sample
) -> list[Sample]:
    assert load.rate is not None
    begin = clock.now()
    arrivals = [begin + t for t in poisson_arrivals(load.rate, len(requests), load.seed)]
    samples: list[Sample] = []
    done = 0
    while done < len(requests):
        clock.sleep_until(arrivals[done])
        now = clock.now()
        end = done + 1
        while end < len(requests) and end - done < load.batch and arrivals[end] <= now:
            end += 1
        samples += _hand_over(system, requests[done:end], arrivals[done:end], clock, base)
        done = end
    return samples


_Driver = Callable[[System, Sequence[Request], Load, Clock, Sample], list[Sample]]
_DRIVERS: dict[str, _Driver] = {
    "single": _closed_loop,
    "multi": _closed_loop,
    "server": _server,
    "offline": _offline,
}
