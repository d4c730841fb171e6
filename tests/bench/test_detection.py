"""Does the bench find what is there, and nothing else? Fakes with known, drifting delays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from primelens.bench.cells import Cell, run_cell
from primelens.bench.estimators import Comparison, compare_blocks
from primelens.bench.fake import Drift, FakeSystem
from primelens.bench.figures import end_to_end, latency_blocks
from primelens.bench.pictures import PictureSource
from primelens.bench.scenarios import Load
from primelens.bench.spec import Spec
from primelens.bench.system import SimulatedClock

TRIES, NEEDED = 200, 185
SPEC = Spec("fake", model="none", blocks=20, requests=5, tokens=4, warm_ups=1)
CELL = Cell("single", "forced", Load("single"))


class _Names(PictureSource):
    """Numbers instead of pictures: nobody looks at them."""

    def __init__(self) -> None:
        self._next = 0

    def fresh(self, count: int) -> list[str]:
        self._next += count
        return [str(n) for n in range(self._next - count, self._next)]


def interleaved(seed: int, slower: float) -> tuple[list[list[float]], list[list[float]]]:
    """Two systems in turns on one drifting machine: 15 % drift that lasts 10 s, 4 % noise."""
    clock = SimulatedClock()
    drift = Drift(spread=0.15, seconds=10.0, seed=seed)
    systems = {
        "a": FakeSystem("a", clock, drift, noise=0.04, seed=2 * seed),
        "b": FakeSystem(
            "b", clock, drift, tower=0.2 * slower, step=0.02 * slower, noise=0.04, seed=2 * seed + 1
        ),
    }
    samples = run_cell(CELL, systems, SPEC, _Names(), clock).samples
    one, other = (latency_blocks(s for s in samples if s.system == name) for name in "ab")
    return one, other


def alone(seed: int, slower: float) -> list[list[float]]:
    """One system alone; the machine of another day drifts otherwise, about the same level."""
    clock = SimulatedClock()
    drift = Drift(spread=0.03, seconds=2.0, seed=seed)
    system = FakeSystem(
        "a", clock, drift, tower=0.2 * slower, step=0.02 * slower, noise=0.04, seed=seed
    )
    longer = replace(SPEC, blocks=40)  # unpaired blocks tell less than pairs
    return latency_blocks(run_cell(CELL, {"a": system}, longer, _Names(), clock).samples)


def test_the_machine_really_drifts() -> None:
    """Neighbouring requests are alike: that is what a test over requests would fall for."""
    clock = SimulatedClock()
    system = FakeSystem("a", clock, Drift(0.15, 10.0, 0), noise=0.04)
    found = run_cell(CELL, {"a": system}, SPEC, _Names(), clock).samples
    values = np.log([end_to_end(s) for s in found])
    lagged = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert lagged > 0.7


def test_equal_systems_compare_as_no_difference() -> None:
    verdicts = [
        compare_blocks(*interleaved(seed, 1.0), paired=True, seed=seed).verdict
        for seed in range(TRIES)
    ]
    assert verdicts.count("no difference") >= NEEDED


@pytest.fixture(scope="module")
def planted() -> list[Comparison]:
    """Comparisons of a system with one that is 10 % slower."""
    return [
        compare_blocks(*interleaved(1000 + seed, 1.1), paired=True, seed=seed)
        for seed in range(TRIES)
    ]


def test_ten_percent_are_found(planted: list[Comparison]) -> None:
    assert [found.verdict for found in planted].count("slower") >= NEEDED


def test_intervals_of_interleaved_runs_cover_the_truth(planted: list[Comparison]) -> None:
    """95 % intervals hold the true 1.1 at least 92 % of the time."""
    assert sum(not found.ratio.excludes(1.1) for found in planted) >= 0.92 * TRIES


@pytest.mark.slow
@pytest.mark.parametrize(("slower", "verdict"), [(1.0, "no difference"), (1.1, "slower")])
def test_separate_runs_are_told_apart(slower: float, verdict: str) -> None:
    verdicts = [
        compare_blocks(
            alone(3000 + seed, 1.0), alone(5000 + seed, slower), paired=False, seed=seed
        ).verdict
        for seed in range(TRIES)
    ]
    assert verdicts.count(verdict) >= NEEDED


def test_a_test_over_requests_would_have_been_fooled() -> None:
    """Why blocks: two runs on a drifting machine, compared request by request, 'differ'."""
    from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]

    fooled = 0
    for seed in range(50):
        clock = SimulatedClock()
        drift = Drift(0.15, 10.0, seed)
        system = FakeSystem("a", clock, drift, noise=0.04, seed=seed)
        found = run_cell(CELL, {"a": system}, SPEC, _Names(), clock).samples
        values = [end_to_end(s) for s in found]
        half = len(values) // 2
        fooled += mannwhitneyu(values[:half], values[half:]).pvalue < 0.05
    assert fooled > 20
