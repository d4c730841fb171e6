from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.bench.cells import Cell
from primelens.bench.fake import FakeSystem
from primelens.bench.memory import memory_of, slope
from primelens.bench.pictures import PictureSource
from primelens.bench.quality import agreement, measure_quality
from primelens.bench.reuse import cache_cells
from primelens.bench.spec import Spec
from primelens.bench.system import Answer, Request, SimulatedClock
from primelens.errors import EngineError


def answers(*tokens: tuple[int, ...]) -> list[Answer]:
    return [Answer(i, text=str(t), tokens=t) for i, t in enumerate(tokens)]


def test_agreement_by_hand() -> None:
    reference = answers((1, 2, 3), (4, 5), (6,), (7, 8))
    given = [*answers((1, 2, 3), (4, 9), (6, 7)), Answer(3, error="broken")]
    found = agreement(reference, given)
    assert found["pictures"] == 4
    assert found["failures"] == 1
    assert found["same_tokens"] == 0.25
    assert found["tokens_before_difference"] == (3 + 1 + 1) / 4
    assert found["distinct"] == 3


def test_the_reference_is_transformers_where_it_takes_part(tmp_path: Path) -> None:
    class Dead(FakeSystem):
        def answer(self, requests: Sequence[Request]) -> list[Answer]:
            raise EngineError("gone")

    clock = SimulatedClock()
    systems = {
        "primelens": FakeSystem("primelens", clock),
        "transformers": FakeSystem("transformers", clock),
        "dead": Dead("dead", clock),
    }
    found = measure_quality(systems, Spec("s", model="m"), PictureSource(tmp_path, 0))
    assert found["reference"] == "transformers"
    assert found["systems"]["primelens"]["same_tokens"] == 1.0
    assert found["errors"] == {"dead": "gone"}


def test_growth_is_counted_after_settling() -> None:
    assert slope([900.0, 1000.0, 1010.0, 1020.0, 1030.0]) == pytest.approx(10.0)
    assert slope([5.0]) == 0.0


@settings(deadline=None)
@given(st.floats(-10, 10), st.floats(0, 1e6), st.integers(4, 50))
def test_a_straight_line_has_its_slope(rise: float, start: float, count: int) -> None:
    assert slope([start + rise * i for i in range(count)]) == pytest.approx(rise, abs=1e-6)


def test_memory_is_taken_after_every_request(tmp_path: Path) -> None:
    class Leaking(FakeSystem):
        size = 1000

        def memory(self) -> dict[str, int]:
            self.size += 64
            return {"resident": self.size, "peak": self.size}

    spec = Spec("s", model="m", blocks=4, requests=2)
    leaking = Leaking("a", SimulatedClock())
    (found,) = memory_of({"a": leaking}, spec, PictureSource(tmp_path, 0)).values()
    assert found["requests"] == 8
    assert found["growth_bytes_per_request"] == pytest.approx(64.0)
    assert found["peak_bytes"] == found["resident_bytes"][-1] + 64


def test_hits_misses_and_mixtures_show_what_they_say(tmp_path: Path) -> None:
    """A fake cache: a picture costs the tower only the first time."""
    clock = SimulatedClock()

    class Keeping(FakeSystem):
        def __init__(self) -> None:
            super().__init__("kept", clock)
            self._seen: set[str] = set()

        def answer(self, requests: Sequence[Request]) -> list[Answer]:
            known = requests[0].picture in self._seen
            self._seen.add(requests[0].picture)
            self._tower = 0.0 if known else 1.0
            return super().answer(requests)

    spec = Spec("s", model="m", blocks=3, requests=4, tokens=2, reuse=0.5)
    plain = FakeSystem("plain", clock, tower=1.0)
    found = cache_cells(Keeping(), plain, spec, PictureSource(tmp_path, 0), clock)
    e2e = {state: row["figures"]["seconds"]["e2e"] for state, row in found.items()}
    assert e2e["off"]["p50"] == e2e["miss"]["p50"] == pytest.approx(1.02)
    assert e2e["hit"]["p50"] == pytest.approx(0.02)
    assert e2e["mixed"]["mean"] == pytest.approx(0.52)
    assert {state: row["repeated"] for state, row in found.items()} == {
        "off": 0.0,
        "miss": 0.0,
        "hit": 1.0,
        "mixed": 0.5,
    }
    assert Cell("cache", "forced", None).batch == 1
