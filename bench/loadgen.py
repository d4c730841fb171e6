"""MLCommons LoadGen as a backend: its scenarios, its clock, its own log files.

LoadGen decides when a query is issued and computes the figures; primelens only answers. The run is
MLPerf-style and unofficial: no submission, no compliance checks. Needs ``primelens[loadgen]``.
"""

from __future__ import annotations

import array
import queue
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primelens.bench.bandwidth import best_seconds
from primelens.bench.system import Request, System
from primelens.errors import DependencyError, OptionError

__all__ = ["SCENARIOS", "LoadGenOptions", "LoadGenSummary", "run_loadgen"]

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
_EARLY_STOPPING = {"SingleStream": 64, "MultiStream": 662, "Server": 662, "Offline": 1}
_HEADROOM = 2.0  # a plan for more pictures than the system has shown to manage
_SERVER_LOAD = 0.5  # arrivals, as a share of what it manages one by one
_CALIBRATION = 3


@dataclass(frozen=True)
class LoadGenOptions:
    """How LoadGen is set up.

    Attributes:
        scenario: one of `SCENARIOS`.
        least_seconds: LoadGen's ``min_duration``.
        least_queries: its ``min_query_count``; None takes what its early stopping needs: 64 for the
            90th percentile of ``SingleStream``, 662 for the 99th of ``MultiStream``.
        expected: pictures per second that it plans with (of ``Server``: that arrive); None measures
            the system first. Too low a plan for ``Offline`` ends before ``least_seconds``.
        slo: of ``Server``: target latency in seconds.
        batch: pictures answered together, where a query holds several.
        max_new_tokens: forced length; None for the natural end.
    """

    scenario: str = "SingleStream"
    least_seconds: float = 2.0
    least_queries: int | None = None
    expected: float | None = None
    slo: float = 1.0
    batch: int = 8
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise OptionError(
                f"LoadGen has no scenario {self.scenario!r}.",
                remedy=f"It has: {', '.join(SCENARIOS)}.",
            )


@dataclass(frozen=True)
class LoadGenSummary:
    """What LoadGen's own ``mlperf_log_summary.txt`` says.

    Attributes:
        valid: LoadGen calls the run valid.
        fields: every ``name : value`` of the summary.
        folder: where its log files lie.
        errors: what requests failed with.
    """

    valid: bool
    fields: dict[str, str]
    folder: Path
    errors: tuple[str, ...]


def run_loadgen(
    system: System, pictures: Sequence[str], folder: Path, options: LoadGenOptions
) -> LoadGenSummary:
    """Let LoadGen drive ``system`` over ``pictures``; its logs go to ``folder``.

    Raises:
        DependencyError: LoadGen is not installed.
    """
    loadgen = _loadgen()
    folder.mkdir(parents=True, exist_ok=True)
    expected = options.expected or _measured(system, pictures, options)
    server = _Answering(loadgen, system, pictures, options)
    settings = _settings(loadgen, options, expected)
    logging = loadgen.LogSettings()
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logging.log_output, logging.enable_trace = output, False
    sut = loadgen.ConstructSUT(server.issue, lambda: None)
    library = loadgen.ConstructQSL(len(pictures), len(pictures), lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(sut, library, settings, logging)
    finally:
        server.stop()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    fields = _fields((folder / "mlperf_log_summary.txt").read_text(encoding="utf-8"))
    valid = fields.get("Result is") == "VALID" and not server.errors
    return LoadGenSummary(valid, fields, folder, tuple(server.errors))


class _Answering:
    """Takes queries off LoadGen's thread and answers them in batches, in order."""

    def __init__(
        self, loadgen: Any, system: System, pictures: Sequence[str], options: LoadGenOptions
    ) -> None:
        self._loadgen, self._system = loadgen, system
        self._pictures, self._options = pictures, options
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen; must return at once."""
        size = self._options.batch
        for start in range(0, len(samples), size):
            self._queue.put([(s.id, s.index) for s in samples[start : start + size]])

    def stop(self) -> None:
        """End the thread behind what is queued."""
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (batch := self._queue.get()) is not None:
            paths = [self._pictures[index] for _, index in batch]
            requests = _requests(paths, self._options.max_new_tokens)
            try:
                answers = self._system.answer(requests)
                self.errors += [a.error for a in answers if a.error is not None]
                payloads = [array.array("q", a.tokens).tobytes() for a in answers]
            except Exception as error:  # noqa: BLE001 - LoadGen waits for ever for what is not answered
                self.errors.append(f"{type(error).__name__}: {error}")
                payloads = [b""] * len(batch)
            self._complete(batch, payloads)

    def _complete(self, batch: Sequence[tuple[int, int]], payloads: Sequence[bytes]) -> None:
        kept = [array.array("B", payload or b"\0") for payload in payloads]
        responses = []
        for (number, _), data in zip(batch, kept, strict=True):
            address, length = data.buffer_info()
            responses.append(self._loadgen.QuerySampleResponse(number, address, length))
        self._loadgen.QuerySamplesComplete(responses)  # copies before it returns


def _measured(system: System, pictures: Sequence[str], options: LoadGenOptions) -> float:
    """Pictures per second to plan with; the first batch warms up."""
    size = options.batch if options.scenario in ("Offline", "MultiStream") else 1
    paths = [pictures[i % len(pictures)] for i in range(size)]
    requests = _requests(paths, options.max_new_tokens)
    rate = size / best_seconds(lambda: system.answer(requests), _CALIBRATION)
    return rate * (_SERVER_LOAD if options.scenario == "Server" else _HEADROOM)


def _requests(paths: Sequence[str], tokens: int | None) -> list[Request]:
    return [
        Request(number, path, max_new_tokens=tokens, forced=tokens is not None)
        for number, path in enumerate(paths)
    ]


def _settings(loadgen: Any, options: LoadGenOptions, expected: float) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, options.scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(options.least_seconds * 1e3)
    least = options.least_queries or _EARLY_STOPPING[options.scenario]
    settings.min_query_count = least
    if options.scenario == "Offline":
        settings.offline_expected_qps = expected
    elif options.scenario == "Server":
        settings.server_target_qps = expected
        settings.server_target_latency_ns = round(options.slo * 1e9)
    elif options.scenario == "MultiStream":
        settings.multi_stream_samples_per_query = options.batch
        settings.multi_stream_expected_latency_ns = max(1, round(1e9 * options.batch / expected))
    else:
        settings.single_stream_expected_latency_ns = max(1, round(1e9 / expected))
    return settings


def _fields(text: str) -> dict[str, str]:
    """Every ``name : value`` line."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*([^:]+?)\s*:\s+(.*\S)\s*$", line)
        if match:
            found[match[1]] = match[2]
    return found


def _loadgen() -> Any:
    try:
        import mlperf_loadgen
    except ModuleNotFoundError as error:
        raise DependencyError(
            "MLCommons LoadGen is not installed.",
            remedy="Run `pip install 'primelens[loadgen]'`.",
        ) from error
    return mlperf_loadgen
