from __future__ import annotations

import json
from pathlib import Path

import pytest

from primelens.bench import beams
from primelens.bench.beams import BeamReport, Memory, main, timed_moves
from primelens.bench.environment import Load as MachineLoad
from primelens.bench.environment import capture
from primelens.decoding.session import DecoderSession
from primelens.errors import OptionError


def report(memory: Memory | None = None) -> BeamReport:
    seconds = {"greedy": [[0.020, 0.022, 0.024], [0.020]], "beams": [[0.0275] * 3, [0.025]]}
    return BeamReport("m", 3, 20, seconds, [1e-4, 2e-4, 3e-4], memory, capture(), 0.0)


def test_ratio_and_share_by_hand() -> None:
    found = report()
    assert found.ratio.ratio.estimate == pytest.approx(1.25)  # 27.5 / 22 and 25 / 20
    assert found.moved_share == pytest.approx(2e-4 / 0.0275)
    assert not any("cross-attention" in line for line in found.lines())


def test_growth_is_of_medians() -> None:
    memory = Memory((100, 104, 300), (130, 110, 114), (7, 7, 7), (9, 8, 9), 4, 1, 1, 50)
    assert memory.growth == 10
    assert memory.files == 2
    assert memory.rest == 10 - 4 - 1 - 1 - 2
    found = report(memory)
    assert any("cross-attention" in line for line in found.lines())
    assert found.as_dict()["memory"]["growth"] == 10


def test_sessions_are_as_before_when_the_clock_is_taken_away() -> None:
    plain = DecoderSession._reorder

    def break_off() -> None:
        with timed_moves():
            assert DecoderSession._reorder is not plain
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert DecoderSession._reorder is plain


def test_a_real_bundles_beams(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beams, "load_now", lambda: MachineLoad(0.0, 0.0))
    monkeypatch.setattr(beams, "_PROCESSES", 1)
    out = tmp_path / "beams.json"
    arguments = ["--model", str(tiny_bundle), "--tokens", "8", "--blocks", "2", "--threads", "1"]
    assert main([*arguments, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [len(block) for block in found["seconds"]["beams"]] == [3, 3]
    assert len(found["moved_seconds"]) == 6
    assert 0 < found["moved_share"] < 1
    # Two further beams, 32 positions, keys and values of 3 layers x 4 heads x 16.
    assert found["memory"]["self_cache"] == 2 * 32 * 2 * 3 * 4 * 16 * 4
    assert found["memory"]["cross_copies"] == 2 * 17 * 2 * 3 * 64 * 4
    assert len(found["memory"]["greedy"]) == len(found["memory"]["beams"]) == 1


def test_one_beam_is_no_beam_search() -> None:
    with pytest.raises(OptionError, match="at least 2"):
        main(["--beams", "1"])
