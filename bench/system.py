"""What the harness asks of a system under test: three methods, and plain values in and out.

The harness knows no model. A `System` may live in this process or in another one with other
packages (`primelens.bench.workers`); it may be primelens, a peer, or a fake with known delays.

Times are seconds of the system's monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

__all__ = [
    "Answer",
    "Clock",
    "Description",
    "Request",
    "Sample",
    "SimulatedClock",
    "System",
    "SystemClock",
]

STAGES = ("preprocess", "tower", "connector", "prefill", "step")


@dataclass(frozen=True)
class Request:
    """One picture to work on.

    Attributes:
        index: which one it is, counted over the block.
        picture: path of an image file.
        want: a caption, or only the tower's output.
        max_new_tokens: longest caption; None keeps the model's own default.
        forced: go on until ``max_new_tokens``, whatever the model says: the work is then the same
            for all systems and pictures.
        beams: 1 is greedy.
    """

    index: int
    picture: str
    want: Literal["caption", "encode"] = "caption"
    max_new_tokens: int | None = None
    forced: bool = False
    beams: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        index: the request's.
        text: the caption.
        tokens: its ids, the end token included if it was reached.
        token_times: when each token was known; empty where the system does not tell.
        stages: seconds per stage, as far as the system tells them; of the whole batch, which
            `primelens.bench.figures.stage_split` shares out among its requests.
        error: what went wrong, or None.
    """

    index: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    token_times: tuple[float, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Answer:
        """From another process."""
        return Answer(
            index=int(data["index"]),
            text=str(data.get("text", "")),
            tokens=tuple(int(token) for token in data.get("tokens", ())),
            token_times=tuple(float(stamp) for stamp in data.get("token_times", ())),
            stages={str(k): float(v) for k, v in data.get("stages", {}).items()},
            error=data.get("error"),
        )


@dataclass(frozen=True)
class Description:
    """What a system is: everything that its figures depend on beside the machine.

    Attributes:
        name: short and unique in a run.
        kind: what runs it, for example ``primelens``.
        versions: package → version, of the environment it runs in.
        precision: of the weights.
        threads: that it computes with.
        digests: file → SHA-256 of what it runs.
        notes: anything else that a reader ought to know.
        opening: seconds until it could answer: ``import`` of its packages, ``load`` of its model,
            as far as it tells them, and ``total`` from the start of its process.
    """

    name: str
    kind: str
    versions: Mapping[str, str] = field(default_factory=dict)
    precision: str = ""
    threads: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    opening: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {**asdict(self), "notes": list(self.notes)}


class System(Protocol):
    """A system under test. Not thread-safe: the harness has one request batch under way."""

    def describe(self) -> Description:
        """What it is."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Work on all requests together, as one batch; one answer per request, in order.

        A request that fails is an answer with an error; an exception means that the system is gone.
        """

    def close(self) -> None:
        """Give back what it holds."""


class Clock(Protocol):
    """Time, so that a test can have its own."""

    def now(self) -> float:
        """Seconds."""

    def sleep_until(self, moment: float) -> None:
        """Return at ``moment``, or at once if it has passed."""


class SystemClock:
    """The monotonic clock of this machine."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        # A sleep may end a scheduler's tick late: the last stretch is spent awake.
        while (left := moment - time.monotonic()) > 0:
            time.sleep(left - 0.001 if left > 0.002 else 0)


class SimulatedClock:
    """A clock that stands still until someone moves it."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def sleep_until(self, moment: float) -> None:
        self._now = max(self._now, moment)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


@dataclass(frozen=True)
class Sample:
    """One request as it went; the raw material of every figure.

    Attributes:
        system, scenario, lengths, block: where in the run it belongs; ``lengths`` is "forced",
            "natural" or "encode".
        request, answer: what was asked, and what came of it.
        scheduled: when it should have started. In an open loop this does not wait for the system.
        started, ended: when its batch was handed over, and when the answer was there.
        batch: requests in its batch.
    """

    system: str
    scenario: str
    lengths: str
    block: int
    request: Request
    answer: Answer
    scheduled: float
    started: float
    ended: float
    batch: int = 1
