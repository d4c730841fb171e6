from __future__ import annotations

import json
from pathlib import Path

import pytest

from primelens.bench import environment
from primelens.bench.environment import Load, Neighbours, capture, differences, load_now


def test_this_machine_is_described() -> None:
    found = capture({"numpy": "1"})
    assert found.usable <= found.cores
    assert found.packages == {"numpy": "1"}
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert found.cpu in found.line


def test_an_environment_does_not_differ_from_itself() -> None:
    assert differences(capture().as_dict(), capture().as_dict()) == []


def test_every_difference_is_named() -> None:
    one = {"cpu": "a", "packages": {"numpy": "1", "torch": "2"}, "cores": 2}
    two = {"cpu": "b", "packages": {"numpy": "2"}, "cores": 2}
    assert differences(one, two) == [
        "cpu: a and b",
        "packages.numpy: 1 and 2",
        "packages.torch: 2 and None",
    ]


def test_primelens_itself_is_what_may_differ() -> None:
    one, two = ({"packages": {"primelens": v, "numpy": "1"}} for v in "12")
    assert differences(one, two) == []


def test_other_processes_use_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 ticks passed on all cores, 60 busy; 20 of those were this process's own."""
    ticks = iter([(1000, 5000), (1060, 5100)])
    own = iter([3.0, 3.2])
    monkeypatch.setattr(environment, "_busy_ticks", lambda: next(ticks))
    monkeypatch.setattr(environment.time, "process_time", lambda: next(own))
    monkeypatch.setattr(environment.time, "sleep", lambda _: None)
    monkeypatch.setattr(environment.os, "sysconf", lambda _: 100)
    assert load_now().others == pytest.approx(0.4)


@pytest.mark.parametrize(("others", "busy"), [(None, False), (0.1, False), (0.2, True)])
def test_busy_is_when_others_use_the_cores(others: float | None, busy: bool) -> None:
    assert Load(0.0, others).busy is busy


def test_the_kernels_counters_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu  100 5 50 800 30 2 3 10 7 0\ncpu0 1 1 1 1\n", encoding="ascii")
    monkeypatch.setattr(environment, "Path", lambda _: stat)
    assert environment._busy_ticks() == (170, 1000)


def test_neighbours_are_what_is_busy_and_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 ticks passed, 90 busy; this process used 0.3 s and a child that ended 0.2 s."""
    ticks = iter([(1000, 5000), (1090, 5200)])
    own = iter([(1.0, 0.5, 2.0, 0.0, 9.0), (1.2, 0.6, 2.1, 0.1, 11.0)])
    monkeypatch.setattr(environment, "_busy_ticks", lambda: next(ticks))
    monkeypatch.setattr(environment.os, "times", lambda: next(own))
    monkeypatch.setattr(environment.os, "sysconf", lambda _: 100)
    assert Neighbours().share() == pytest.approx(0.2)


def test_neighbours_are_unknown_where_the_system_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "_busy_ticks", lambda: None)
    assert Neighbours().share() is None
