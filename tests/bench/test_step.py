from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from primelens.bench import bandwidth, step
from primelens.bench.environment import capture
from primelens.bench.step import StepReport, StepRow, measure_steps
from primelens.bench.step_bytes import StepBytes


class _Recorder:
    """Remembers what it was fed; its logits name the number of tokens it has seen."""

    def __init__(self, name: str, log: list[str], wrong_at: int | None = None) -> None:
        self.name, self._log, self._wrong_at = name, log, wrong_at
        self._seen: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        self._log.append(f"{self.name}:start{len(tokens)}")
        self._seen = list(tokens)

    def step(self, token: int) -> NDArray[np.float32]:
        self._seen.append(token)
        self._log.append(f"{self.name}:{token}")
        logits = np.zeros(40, np.float32)
        logits[sum(self._seen) % 40] = 1.0
        if len(self._seen) == self._wrong_at:
            logits[0] = 1.25
        return logits


def test_systems_take_turns_and_see_the_same_tokens() -> None:
    log: list[str] = []
    systems = [_Recorder("a", log), _Recorder("b", log)]
    seconds, error, same = measure_steps(systems, [3, 1, 4, 1, 5, 9], 4, blocks=2, steps=2)
    block = ["start3", "1", "5", "9"]  # three in the prefill, the fourth untimed, then two timed
    assert log == [f"{name}:{what}" for _ in range(3) for name in "ab" for what in block]
    assert {name: [len(b) for b in blocks] for name, blocks in seconds.items()} == {
        "a": [2, 2],
        "b": [2, 2],
    }
    assert error == 0.0
    assert same


def test_a_wrong_step_is_noticed() -> None:
    systems = [_Recorder("a", []), _Recorder("b", [], wrong_at=6)]
    _, error, same = measure_steps(systems, [3, 1, 4, 1, 5, 9], 4, blocks=2, steps=2)
    assert error == 1.25
    assert not same


def _report(others: float) -> StepReport:
    seconds = {"a": [[0.010, 0.030], [0.012, 0.011]], "b": [[0.02, 0.06], [0.024, 0.022]]}
    row = StepRow(16, StepBytes(80_000_000, 10_000_000, 10_000_000), seconds, 1e-5, True)
    return StepReport(20e9, [row], capture(), 2, others, {"f": "0" * 64})


def test_the_ratio_to_the_limit_by_hand() -> None:
    report = _report(0.0)
    (row,) = report.rows
    assert row.median("a") == pytest.approx(0.0115)
    assert report.share(row, "a") == pytest.approx(0.0115 / 0.005)
    ratio = row.speed_up()
    assert ratio is not None
    assert ratio.estimate == pytest.approx(2.0)


def test_the_table_and_the_file_say_the_same() -> None:
    report = _report(0.0)
    (line,) = [line for line in report.lines() if line.split()[:3] == ["1", "1", "16"]]
    assert line.split()[3:8] == ["100.0", "MB", "5.00", "11.50", "2.30"]
    data = json.loads(json.dumps(report.as_dict()))
    assert data["rows"][0]["over_limit"]["a"] == pytest.approx(2.3)
    assert data["rows"][0]["bytes"]["total"] == 100_000_000
    assert not any("busy" in line for line in report.lines())


def test_a_busy_machine_is_said() -> None:
    assert any("busy" in line for line in _report(0.5).lines())


def test_the_runtime_and_the_source_step_alike(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "_LEAST_BUFFER", 1 << 20)
    monkeypatch.setattr(bandwidth, "last_level_cache", lambda: 0)
    monkeypatch.setattr(step, "load_now", lambda: step.Load(0.0, 0.0))
    out = tmp_path / "step.json"
    arguments = ["--model", str(tiny_bundle), "--against", str(tiny_checkpoint)]
    arguments += ["--past", "2,20", "--blocks", "2", "--steps", "2", "--threads", "1"]
    arguments += ["--batch", "1,2", "--beams", "1,3"]
    assert step.main([*arguments, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["batch"], row["beams"], row["past"]) for row in rows] == [
        (batch, beams, past) for batch in (1, 2) for beams in (1, 3) for past in (2, 20)
    ]
    first, widest = rows[0]["bytes"], rows[-2]["bytes"]
    assert widest["cross_cache"] == 2 * first["cross_cache"]  # once per picture, not per beam
    assert widest["self_cache"] == 6 * first["self_cache"]
    for row in rows:
        assert row["same_tokens"]
        assert row["logits_error"] < 1e-3
        assert len(row["seconds"]) == 2


def test_a_past_beyond_the_models_positions_is_refused(tiny_bundle: Path) -> None:
    from primelens.errors import OptionError

    with pytest.raises(OptionError, match="64 positions"):
        step.main(["--model", str(tiny_bundle), "--past", "62", "--threads", "1"])
