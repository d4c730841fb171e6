from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from primelens.bench import commands, run
from primelens.bench.cells import cells_of, run_cell, server_load
from primelens.bench.environment import Load as MachineLoad
from primelens.bench.estimators import compare_blocks
from primelens.bench.fake import FakeSystem
from primelens.bench.figures import latency_blocks
from primelens.bench.pictures import PictureSource
from primelens.bench.result import read_result
from primelens.bench.run import Outcome, RunOptions
from primelens.bench.scenarios import SETTLING, Load
from primelens.bench.spec import Spec
from primelens.bench.system import SimulatedClock
from primelens.errors import EngineError, OptionError

SPEC = Spec("s", model="m", blocks=3, requests=2, tokens=3, batches=(1, 4), warm_ups=1)


def test_a_spec_becomes_cells_with_the_server_last() -> None:
    spec = Spec("s", model="m", scenarios=("server", "single", "offline", "encode"), batches=(1, 8))
    names = [(c.scenario, c.lengths, c.batch) for c in cells_of(spec)]
    assert names == [
        ("single", "forced", 1),
        ("offline", "forced", 1),
        ("offline", "forced", 8),
        ("single", "natural", 1),
        ("offline", "natural", 1),
        ("offline", "natural", 8),
        ("encode", "encode", 1),
        ("server", "forced", 1),
        ("server", "natural", 1),
    ]


def test_systems_take_turns_over_the_same_fresh_pictures(tmp_path: Path) -> None:
    clock = SimulatedClock()
    systems = {name: FakeSystem(name, clock) for name in "ab"}
    cell = cells_of(SPEC)[0]
    found = run_cell(cell, systems, SPEC, PictureSource(tmp_path, 0), clock)
    order = [(s.block, s.system) for s in sorted(found.samples, key=lambda s: s.started)]
    assert order == [
        (block, name)
        for block, names in enumerate(("ab", "ba", "ab"))  # who is first changes
        for name in names
        for _ in range(2)
    ]
    shown = {name: [s.request.picture for s in found.samples if s.system == name] for name in "ab"}
    assert shown["a"] == shown["b"]
    assert len(set(shown["a"])) == 6  # never the same picture twice


def test_a_turn_begins_on_an_idle_machine(tmp_path: Path) -> None:
    """Whoever comes next waits until the threads of the one before sleep; one alone does not."""
    gaps = {}
    for names in ("ab", "a"):
        clock = SimulatedClock()
        systems = {name: FakeSystem(name, clock) for name in names}
        cell = cells_of(SPEC)[0]
        found = run_cell(cell, systems, SPEC, PictureSource(tmp_path / names, 0), clock).samples
        ordered = sorted(found, key=lambda s: s.started)
        gaps[names] = {
            round(b.started - a.ended, 6)
            for a, b in pairwise(ordered)
            if (a.system, a.block) != (b.system, b.block)
        }
    assert gaps == {"ab": {SETTLING}, "a": {0.0}}


def test_a_system_that_disturbs_the_next_does_not_look_faster_than_itself(tmp_path: Path) -> None:
    """The one before leaves threads awake for 0.1 s, which double the time of what runs then."""
    clock = SimulatedClock()
    awake: dict[str, float] = {}

    class Spinning(FakeSystem):
        def answer(self, requests):  # type: ignore[no-untyped-def]
            start = clock.now()
            others = [until for name, until in awake.items() if name != self._name]
            disturbed = any(until > start for until in others)
            answers = super().answer(requests)
            if disturbed:
                clock.advance(clock.now() - start)
            awake[self._name] = clock.now() + 0.1
            return answers

    spec = replace(SPEC, blocks=10, requests=1)
    systems = {name: Spinning(name, clock) for name in "ab"}
    found = run_cell(cells_of(spec)[0], systems, spec, PictureSource(tmp_path, 0), clock).samples
    a, b = (latency_blocks(s for s in found if s.system == name) for name in "ab")
    assert compare_blocks(a, b, paired=True).ratio.estimate == pytest.approx(1.0)


def test_offline_fills_whole_batches(tmp_path: Path) -> None:
    cell = next(c for c in cells_of(SPEC) if c.batch == 4)
    clock = SimulatedClock()
    found = run_cell(cell, {"a": FakeSystem("a", clock)}, SPEC, PictureSource(tmp_path, 0), clock)
    assert {s.batch for s in found.samples} == {4}


def test_a_lost_system_is_a_result_and_the_others_go_on(tmp_path: Path) -> None:
    class Dying(FakeSystem):
        def answer(self, requests):  # type: ignore[no-untyped-def]
            raise EngineError("out of memory")

    clock = SimulatedClock()
    systems = {"good": FakeSystem("good", clock), "dying": Dying("dying", clock)}
    runs = run.run_cells(SPEC, systems, PictureSource(tmp_path, 0), clock, lambda _: None)
    assert runs[0].lost == {"dying": "out of memory"}
    assert all(not one.lost for one in runs[1:])  # it is asked no more
    assert {s.system for s in runs[0].samples} == {"good"}


def test_a_system_that_cannot_caption_is_still_asked_to_encode(tmp_path: Path) -> None:
    class TowerOnly(FakeSystem):
        def answer(self, requests):  # type: ignore[no-untyped-def]
            if requests[0].want == "caption":
                raise EngineError("shape inference failed")
            return super().answer(requests)

    clock = SimulatedClock()
    systems = {"good": FakeSystem("good", clock), "tower": TowerOnly("tower", clock)}
    spec = Spec("s", model="m", scenarios=("single", "encode", "offline"), blocks=2, requests=1)
    runs = run.run_cells(spec, systems, PictureSource(tmp_path, 0), clock, lambda _: None)
    found = {one.cell.scenario: {s.system for s in one.samples} for one in runs}
    assert found == {"single": {"good"}, "offline": {"good"}, "encode": {"good", "tower"}}
    assert [one.lost for one in runs].count({}) == len(runs) - 1  # lost once, then asked no more


def test_the_servers_rate_follows_the_slowest_and_its_objective_the_fastest(
    tmp_path: Path,
) -> None:
    clock = SimulatedClock()
    systems = {
        "fast": FakeSystem("fast", clock, tower=0.1, step=0.0),
        "slow": FakeSystem("slow", clock, tower=0.5, step=0.0),
    }
    cell = cells_of(SPEC)[0]
    samples = run_cell(cell, systems, SPEC, PictureSource(tmp_path, 0), clock).samples
    singles = {name: [s for s in samples if s.system == name] for name in systems}
    load, objective = server_load(SPEC, singles)
    assert load.rate == pytest.approx(0.7 / 0.5)
    assert load == Load("server", batch=4, rate=load.rate, seed=0)
    assert objective.e2e == pytest.approx(3 * 0.1)


def test_ratios_are_of_pairs_and_find_the_slower_system(outcome: Outcome) -> None:
    for row in outcome.result.ratios:
        assert row["system"] == "peer"
        assert row["over"] == "primelens"
        if row["scenario"] != "server":  # there, the wait for arrivals is part of the latency
            assert row["low"] < 1.5 < row["high"] or abs(row["ratio"] - 1.5) < 0.05
            assert row["verdict"] == "slower"


def test_shares_of_the_limits_by_hand(outcome: Outcome) -> None:
    cell = outcome.result.cell("primelens", "offline", "forced", 4)
    assert cell is not None
    gap = cell["figures"]["seconds"]["gap"]["p50"]
    read = 100e6 + 4 * (1e6 + 10e6)  # the weights once, every picture's caches
    assert cell["shares"]["step"] == pytest.approx(read / 20e9 / gap)
    tower = cell["figures"]["stages"]["tower"]  # of one picture out of four
    assert cell["shares"]["tower"] == pytest.approx(4e9 / 100e9 / tower)


def test_a_result_survives_its_file(outcome: Outcome, tmp_path: Path) -> None:
    outcome.result.write(tmp_path / "result.json")
    again = read_result(tmp_path)
    assert json.dumps(again.cells) == json.dumps(outcome.result.cells)
    assert again.spec_digest == outcome.result.spec_digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a result"),
        ('{"kind": "primelens-bench", "version": 2}', "version 2"),
        ('{"kind": "primelens-bench", "version": 1}', "missing or unknown parts"),
    ],
)
def test_a_file_that_is_no_result_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(OptionError, match=said):
        read_result(file)


def test_a_whole_run_of_a_real_bundle(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every scenario, through worker processes; a peer without an environment is a result too."""
    monkeypatch.setattr(run, "load_now", lambda: MachineLoad(0.0, 0.0))
    monkeypatch.setattr("primelens.bench.bandwidth._LEAST_BUFFER", 1 << 20)
    monkeypatch.setattr("primelens.bench.bandwidth.last_level_cache", lambda: 0)
    monkeypatch.setattr("primelens.bench.bandwidth._GEMM_SIZES", (48, 64))
    scenarios = '["single", "multi", "offline", "encode", "server", "accuracy", "memory", "cache"]'
    (tmp_path / "tiny.toml").write_text(
        f'name = "tiny"\nmodel = "{tiny_bundle}"\ncheckpoint = "{tiny_checkpoint}"\n'
        f"scenarios = {scenarios}\nblocks = 2\nrequests = 2\nbatches = [1, 2]\ntokens = 4\n"
        "threads = 1\n"
    )
    out = tmp_path / "out"
    arguments = ["run", str(tmp_path / "tiny.toml"), "--out", str(out), "--export", "csv"]
    arguments += ["--peers", "optimum", "--peer-folder", str(tmp_path / "nowhere")]
    assert commands.main(arguments) == 0
    result = read_result(out)
    assert "not built" in result.systems["optimum"]["error"]
    assert {c["scenario"] for c in result.cells} == {
        *("single", "multi", "offline", "encode", "server")
    }
    for cell in result.cells:
        assert cell["figures"]["failures"] == 0
        if cell["lengths"] == "forced":
            assert cell["figures"]["tokens"] == 4 * cell["figures"]["requests"]
            assert cell["figures"]["seconds"]["ttft"]["p50"] > 0
            assert cell["shares"].keys() == {"step", "tower"}
    assert result.quality["golden"]["passed"]
    assert result.quality["systems"]["primelens"]["same_tokens"] == 1.0
    assert result.quality["systems"]["primelens"]["distinct"] > 1
    assert result.memory["primelens"]["peak_bytes"] > 10**7
    assert result.cache["hit"]["repeated"] == 1.0
    assert result.cache["miss"]["repeated"] == 0.0
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "result.csv").read_text().count("\n") == len(result.cells) + 1


def test_a_busy_machine_concludes_nothing(outcome: Outcome) -> None:

    from primelens.bench.table import result_lines

    busy = {"others_before": 0.9, "others_after": 0.0, "busy": True, "concluded": False}
    lines = "\n".join(result_lines(replace(outcome.result, load=busy)))
    assert "BUSY" in lines
    assert "slower" not in lines
    assert "not concluded" in lines


def test_reference_works_are_known_by_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nonsense"):
        run.prepare(Spec("s", checkpoint="reference:nonsense"), tmp_path, lambda _: None)


def test_peers_need_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no checkpoint"):
        run._open("optimum", run.Subject("m", None), 1, tmp_path)
    assert RunOptions().peers == ()
