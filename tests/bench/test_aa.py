from __future__ import annotations

import json
from pathlib import Path

import pytest

from primelens.bench import aa
from primelens.bench.aa import Slowed, compare_alike
from primelens.bench.environment import Load as MachineLoad
from primelens.bench.fake import Drift, FakeSystem
from primelens.bench.pictures import PictureSource
from primelens.bench.spec import Spec
from primelens.bench.system import Request, SimulatedClock, System
from primelens.errors import OptionError

SPEC = Spec("aa", model="m", blocks=12, requests=2, tokens=3)


def test_a_planted_delay_is_a_share_of_the_answer() -> None:
    clock = SimulatedClock(start=5.0)
    system = Slowed(FakeSystem("s", clock, tower=1.0, step=0.5), 0.1, clock)
    answers = system.answer([Request(0, "p", max_new_tokens=3, forced=True)])
    assert clock.now() == pytest.approx(5.0 + 1.1 * 2.0)
    assert answers[0].token_times[-1] == 7.0  # when it was known, not when it was handed over


@pytest.mark.parametrize(("planted", "verdict"), [(0.0, "no difference"), (0.1, "slower")])
def test_every_run_opens_two_fresh_systems(planted: float, verdict: str, tmp_path: Path) -> None:
    clock = SimulatedClock()
    drift = Drift(0.1, 10.0, 3)
    made: list[FakeSystem] = []

    def opened() -> tuple[System, System]:
        pair = [
            FakeSystem(n, clock, drift, noise=0.02, seed=len(made) + i) for i, n in enumerate("ab")
        ]
        made.extend(pair)
        return pair[0], Slowed(pair[1], planted, clock)

    found = compare_alike(opened, SPEC, PictureSource(tmp_path, 0), clock, runs=3)
    assert [one.verdict for one in found] == [verdict] * 3
    assert len(made) == 6
    assert all(system.closed for system in made)


def test_a_real_bundle_beside_itself(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out is chance; that it comes out, and is written, is not."""
    monkeypatch.setattr(aa, "load_now", lambda: MachineLoad(0.0, 0.0))
    out = tmp_path / "aa.json"
    arguments = ["--model", str(tiny_bundle), "--runs", "1", "--blocks", "2", "--requests", "1"]
    status = aa.main([*arguments, "--tokens", "3", "--threads", "1", "--json", str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    assert run["verdict"] == "no difference"  # two pairs can prove nothing
    assert run["ratio"]["low"] <= run["ratio"]["estimate"] <= run["ratio"]["high"]
    assert status == 0


def test_no_run_says_nothing() -> None:
    with pytest.raises(OptionError, match="at least one"):
        aa.main(["--runs", "0"])
