from __future__ import annotations

import json
from pathlib import Path

import pytest

from primelens.bench import coldstart
from primelens.bench.coldstart import PARTS, measure_cold_start, sample_picture
from primelens.bench.environment import Load
from primelens.errors import EngineError


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldstart, "load_now", lambda: Load(0.0, 0.0))


def test_a_fresh_process_captions_and_the_parts_add_up(tiny_bundle: Path, tmp_path: Path) -> None:
    picture = sample_picture(tmp_path)
    found = measure_cold_start(str(tiny_bundle), picture, repetitions=2, warm_ups=0)
    assert len(found.seconds) == 2
    for row in found.seconds:
        assert row["total"] == pytest.approx(sum(row[part] for part in PARTS))
        assert min(row.values()) > 0
    assert found.tokens >= 1
    assert "onnxruntime" in found.model
    assert found.as_dict()["median_ms"]["total"] == pytest.approx(found.median() * 1e3)


def test_the_program_loads_nothing_but_the_runtime() -> None:
    assert "primelens.load" in coldstart._PROGRAM
    assert "torch" not in coldstart._PROGRAM


def test_a_failing_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere"):
        measure_cold_start(str(tmp_path / "nowhere"), sample_picture(tmp_path), repetitions=1)


def test_warm_ups_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = iter(range(10))

    def start(*_: object) -> dict[str, object]:
        total = float(next(numbers))
        seconds = {**dict.fromkeys(PARTS, total / 4), "total": total}
        return {"seconds": seconds, "text": "t", "tokens": 1, "model": "m", "engine": "e"}

    monkeypatch.setattr(coldstart, "_start", start)
    found = measure_cold_start("m", tmp_path, repetitions=5, warm_ups=2)
    assert [row["total"] for row in found.seconds] == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert found.median() == 4.0
    assert found.lines()[3] == "cold start 4000 ms from process start to the first caption"


def test_fewer_than_five_processes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        coldstart.main(["--repetitions", "4"])
    assert "fewer than 5" in capsys.readouterr().err


def test_samples_go_to_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {**dict.fromkeys(PARTS, 0.1), "total": 0.4}
    monkeypatch.setattr(
        coldstart,
        "_start",
        lambda *_: {"seconds": seconds, "text": "t", "tokens": 1, "model": "m", "engine": "e"},
    )
    out = tmp_path / "cold.json"
    assert coldstart.main(["--repetitions", "5", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["median_ms"]["total"] == pytest.approx(400.0)
    assert "400 ms" in capsys.readouterr().out
