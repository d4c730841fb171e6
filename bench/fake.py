"""A system under test whose delays are known, on a machine that drifts; time is simulated.

A real machine is not white noise: it is hot for a minute, shares its memory with a neighbour for
ten seconds. `Drift` is a stationary autocorrelated process over *time* (Ornstein-Uhlenbeck, in the
logarithm of the delay), common to everything that runs on the machine; each request adds noise of
its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from primelens.bench.system import Answer, Description, Request, SimulatedClock

__all__ = ["Drift", "FakeSystem"]


class Drift:
    """How much slower than usual the machine is, as time goes on.

    Args:
        spread: standard deviation of the logarithm of the factor.
        seconds: correlation time: after that long, 1/e of a deviation is left.
        seed: of the process.
    """

    def __init__(self, spread: float, seconds: float, seed: int) -> None:
        self._spread, self._seconds = spread, seconds
        self._random = np.random.default_rng(seed)
        self._level = spread * self._random.standard_normal()
        self._moment: float | None = None

    def factor(self, moment: float) -> float:
        """The factor at ``moment``; moments must not go back."""
        if self._moment is not None:
            kept = math.exp(-(moment - self._moment) / self._seconds)
            fresh = self._spread * math.sqrt(1.0 - kept * kept)
            self._level = kept * self._level + fresh * self._random.standard_normal()
        self._moment = moment
        return math.exp(self._level)


class FakeSystem:
    """Answers after a known delay: ``(tower + tokens x step) x batch cost x drift x noise``.

    Args:
        name: of the system.
        clock: moved on by every answer.
        drift: of the machine; shared by all systems that run on it.
        tower: seconds before the first token.
        step: seconds per further token.
        noise: standard deviation of the logarithm of a request's own factor.
        seed: of that noise.
        fails: indices of requests that fail.
    """

    def __init__(  # noqa: PLR0913 - every delay of a fake is a parameter of its own
        self,
        name: str,
        clock: SimulatedClock,
        drift: Drift | None = None,
        *,
        tower: float = 0.2,
        step: float = 0.02,
        noise: float = 0.0,
        seed: int = 0,
        fails: Sequence[int] = (),
    ) -> None:
        self._name, self._clock, self._drift = name, clock, drift
        self._tower, self._step, self._noise = tower, step, noise
        self._random = np.random.default_rng(seed)
        self._fails = frozenset(fails)
        self.closed = False

    def describe(self) -> Description:
        return Description(self._name, "fake", precision="none", threads=1)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        factor = math.exp(self._noise * self._random.standard_normal())
        if self._drift is not None:
            factor *= self._drift.factor(self._clock.now())
        tower = self._tower * factor * len(requests)
        step = self._step * factor
        self._clock.advance(tower)
        longest = max(1, *(request.max_new_tokens or 4 for request in requests))
        times = []
        for number in range(longest if requests[0].want == "caption" else 0):
            self._clock.advance(step if number else 0.0)
            times.append(self._clock.now())
        stages = {"tower": tower, "step": step * max(0, len(times) - 1)}
        return [
            Answer(request.index, error="planted failure")
            if request.index in self._fails
            else Answer(
                request.index,
                text=f"picture {request.picture}",
                tokens=tuple(range(len(times))),
                token_times=tuple(times),
                stages=stages,
            )
            for request in requests
        ]

    def close(self) -> None:
        self.closed = True
