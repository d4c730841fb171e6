"""A small real bundle and its checkpoint, made once for the tests of this room."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from primelens.bench import run
from primelens.bench.bandwidth import Limits
from primelens.bench.environment import capture
from primelens.bench.fake import Drift, FakeSystem
from primelens.bench.pictures import PictureSource
from primelens.bench.result import Result
from primelens.bench.run import Outcome
from primelens.bench.shares import Work
from primelens.bench.spec import Spec
from primelens.bench.step_bytes import StepBytes
from primelens.bench.system import SimulatedClock, System


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT + GPT-2 checkpoint, small enough to export in seconds."""
    reference_works = pytest.importorskip("primelens.export.reference_works")
    folder: Path = reference_works.build("tiny-vitgpt2", tmp_path_factory.mktemp("bench") / "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its bundle, through the exporter and its gate."""
    from primelens.export.pipeline import export_checkpoint

    out = tiny_checkpoint.with_name("tiny.bundle")
    export_checkpoint(tiny_checkpoint, out)
    return out


SPEC = Spec(
    "fakes",
    model="none",
    scenarios=("single", "offline", "encode", "server"),
    blocks=8,
    requests=2,
    tokens=5,
    batches=(1, 4),
    warm_ups=0,
)


class _Names(PictureSource):
    """Numbers instead of pictures."""

    def __init__(self) -> None:
        self._next = 0

    def fresh(self, count: int) -> list[str]:
        self._next += count
        return [f"{n}.jpg" for n in range(self._next - count, self._next)]


def fake_outcome(slower: float = 1.5, seed: int = 0) -> Outcome:
    """A whole run over two fakes, the second one slower; nothing is timed."""
    clock = SimulatedClock()
    drift = Drift(0.05, 20.0, seed)
    systems: dict[str, System] = {
        "primelens": FakeSystem("primelens", clock, drift, noise=0.02, seed=seed),
        "peer": FakeSystem(
            "peer", clock, drift, tower=0.2 * slower, step=0.02 * slower, noise=0.02, seed=seed + 1
        ),
    }
    runs = run.run_cells(SPEC, systems, _Names(), clock, lambda _: None)
    limits = Limits(2, 20e9, 100e9, None, {"read:sum": 20e9, "fp32:NumPy": 100e9})
    work = Work(4 * 10**9, 10**9, 80_000_000, 50_000_000, StepBytes(10**8, 10**6, 10**7), 5, "none")
    cache = {
        state: {"figures": {"seconds": {"e2e": {"p50": at}}}, "repeated": at}
        for state, at in {"off": 0.3, "miss": 0.31, "hit": 0.1, "mixed": 0.2}.items()
    }
    result = Result(
        spec=run._plain(asdict(SPEC)),
        spec_digest=SPEC.digest,
        started="2026-01-02T03:04:05+00:00",
        quick=False,
        environment=capture({"numpy": "1"}).as_dict(),
        load={"others_before": 0.0, "others_after": 0.01, "busy": False, "concluded": True},
        limits=asdict(limits),
        work=work.as_dict(),
        systems={
            **run._systems({n: s.describe().as_dict() for n, s in systems.items()}, {}),
            "broken": {"description": None, "error": "ValueError: <no> way\nsecond line"},
        },
        cells=[
            row
            for one in runs
            for row in run._rows(one, limits, work, {"primelens": "none", "peer": "none"})
        ],
        ratios=[row for one in runs for row in run._ratios(one, 0)],
        cache=cache,
        quality={
            "reference": "peer",
            "systems": {
                name: {"pictures": 8, "same_tokens": share, "distinct": 8, "failures": 0}
                for name, share in {"primelens": 1.0, "peer": 1.0}.items()
            },
            "errors": {"broken": "ValueError: <no> way\nsecond line"},
            "golden": {"passed": True, "lines": ["a", "b"], "parity": {}},
        },
        memory={
            "primelens": {
                "peak_bytes": 3 * 2**27,
                "requests": 8,
                "growth_bytes_per_request": 100.0,
                "resident_bytes": [2**28 + n * 2**16 for n in range(8)],
                "device_peak_bytes": 2**30,
            }
        },
        coldstart={
            "median_ms": {"python": 20, "import": 90, "load": 200, "caption": 400, "total": 710},
            "seconds": [{}] * 5,
        },
    )
    return Outcome(result, [sample for one in runs for sample in one.samples])


@pytest.fixture(scope="session")
def outcome() -> Outcome:
    """A run in which the second system takes 1.5 times as long."""
    return fake_outcome()
