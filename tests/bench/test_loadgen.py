"""LoadGen itself drives a system; it is compiled, and keeps its own clock and its own logs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from primelens.bench.loadgen import LoadGenOptions, run_loadgen
from primelens.bench.pictures import PictureSource
from primelens.bench.system import Answer, Description, Request
from primelens.bench.workers import WorkerSystem
from primelens.errors import OptionError

pytest.importorskip(
    "mlperf_loadgen", reason="MLCommons LoadGen (primelens[loadgen]) is not installed"
)


class _Prompt:
    """Answers after half a millisecond; remembers what it was asked."""

    def __init__(self, error: str | None = None) -> None:
        self.asked: list[list[str]] = []
        self._error = error

    def describe(self) -> Description:
        return Description("prompt", "fake")

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        self.asked.append([r.picture for r in requests])
        time.sleep(0.0005)
        return [Answer(r.index, tokens=(1, 2, 3), error=self._error) for r in requests]

    def close(self) -> None:
        return


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline", "MultiStream", "Server"])
def test_a_scenario_runs_to_a_valid_summary(scenario: str, tmp_path: Path) -> None:
    system = _Prompt()
    options = LoadGenOptions(scenario=scenario, batch=4, least_seconds=0.05)
    found = run_loadgen(system, [f"p{i}" for i in range(6)], tmp_path / "logs", options)
    assert found.errors == ()
    assert found.fields["Result is"] == "VALID"
    assert found.valid
    assert found.fields["Scenario"].replace(" ", "") == scenario
    assert {len(batch) for batch in system.asked} <= {1, 2, 3, 4}
    assert {p for batch in system.asked for p in batch} <= {f"p{i}" for i in range(6)}
    assert (tmp_path / "logs" / "mlperf_log_detail.txt").stat().st_size > 0


def test_failures_make_a_run_invalid(tmp_path: Path) -> None:
    options = LoadGenOptions(least_seconds=0.05)
    found = run_loadgen(_Prompt("broken"), ["p"], tmp_path, options)
    assert not found.valid
    assert set(found.errors) == {"broken"}


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(OptionError, match="SingleStream"):
        LoadGenOptions(scenario="Single")


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_a_real_bundle_runs_to_a_valid_summary(
    scenario: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    pictures = PictureSource(tmp_path / "p", 0).fresh(4)
    options = LoadGenOptions(scenario=scenario, least_seconds=0.2, max_new_tokens=3)
    with WorkerSystem("primelens", {"model": str(tiny_bundle), "threads": 1}) as system:
        found = run_loadgen(system, pictures, tmp_path / "logs", options)
    assert found.errors == ()
    assert found.valid
