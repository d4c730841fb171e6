from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primelens.bench import commands, target_runs, targets
from primelens.bench.bandwidth import Limits
from primelens.bench.environment import Load
from primelens.bench.fake import FakeSystem
from primelens.bench.pictures import PictureSource
from primelens.bench.run import Subject
from primelens.bench.system import Answer, Request, SimulatedClock
from primelens.bench.target_rows import PARTS, Check, Part, judge
from primelens.bench.target_runs import PartRun, TargetOptions
from primelens.errors import EngineError, OptionError

LIMITS = Limits(2, 20e9, 100e9, 200e9)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_runs, "load_now", lambda: Load(0.0, 0.0))
    monkeypatch.setattr("primelens.bench.coldstart.load_now", lambda: Load(0.0, 0.0))
    monkeypatch.setattr("primelens.bench.bandwidth._LEAST_BUFFER", 1 << 20)
    monkeypatch.setattr("primelens.bench.bandwidth.last_level_cache", lambda: 0)
    monkeypatch.setattr("primelens.bench.bandwidth._GEMM_SIZES", (48,))


def test_parts_are_told_apart_and_promise_only_what_they_measure() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert part.checks
        for check in part.checks:
            assert check.value.partition("/")[0] in part.precisions, (part.name, check.value)
            if check.value.endswith("/other"):
                assert set(part.peers) - {"transformers"}


def test_a_check_is_held_from_the_right_side() -> None:
    assert Check("a", "ratio", 2.0).met_by(2.0)
    assert not Check("a", "ratio", 2.0).met_by(1.99)
    assert Check("a", "time", 1.1, least=False).met_by(1.1)
    assert not Check("a", "time", 1.1, least=False).met_by(1.11)


def _measured(value: float) -> dict[str, Any]:
    return {
        "work": "w",
        "started": "now",
        "environment": {
            "cpu": "a cpu",
            "usable": 2,
            "cores": 2,
            "system": "Linux",
            "python": "3",
            "packages": {"numpy": "1"},
        },
        "values": {"int8/transformers": {"value": value, "low": 1.0, "high": 9.0}},
        "missing": {"int8/other": "optimum: not built"},
        "systems": {
            "int8": {
                "seconds": 0.2,
                "batch": 1,
                "stages": {"tower": 0.15, "step": 0.05},
                "limit": {"tower": 0.1, "total": 0.1},
                "tokens": 0.5,
            },
            "optimum": {"error": "not built\nsecond line"},
        },
        "quality": {
            "int8": {
                "heads": {"caption": {"logits": {"top1_agreement": 0.995, "largest_error": 0.5}}},
                "failures": ["the logits\nmore"],
            }
        },
        "limits": {"read_bytes_per_s": 2e10, "fp32_flop_per_s": 1e11, "int8_op_per_s": None},
        "load": {"before": 0.0, "after": None},
    }


def test_the_table_says_what_was_missed_and_why() -> None:
    found = {"parts": {"beams": _measured(3.0)}, "reasons": {}}
    text = "\n".join(targets.target_lines(found))
    assert "MISSED" in text
    assert "not looked for yet" in text
    assert "50% of the limit; tower 150.0 (limit 100.0), step 50.0; 50% of the captions" in text
    assert "the best other peer: not measured: optimum: not built" in text
    assert "FAILED, which is its result: not built" in text
    assert "top-1 agreement 0.9950, teacher-forced; largest logits error 5.0e-01" in text
    assert "the gate would refuse it: the logits" in text
    found["reasons"]["beams"] = "the tower"
    assert "missed (int8 against transformers eager): the tower" in "\n".join(
        targets.target_lines(found)
    )
    found["parts"]["beams"] = _measured(30.0)
    assert "MISSED" not in "\n".join(targets.target_lines(found))


def test_what_was_not_run_names_the_command() -> None:
    (part,) = (part for part in PARTS if part.name == "tower")
    assert {(one.verdict, one.why) for one in judge(part, None)} == {
        ("not measured", "run it with --only tower")
    }


class _Broken(FakeSystem):
    def answer(self, requests):  # type: ignore[no-untyped-def]
        raise EngineError("out of memory")


class _Unwilling(FakeSystem):
    def answer(self, requests):  # type: ignore[no-untyped-def]
        return [Answer(request.index, error="cannot encode") for request in requests]


def test_systems_take_turns_and_ratios_are_by_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Fakes of known speed: 0.1 + 19 x 0.01 s against three times as much."""
    clock = SimulatedClock()
    part = Part("p", "t", "w", "caption", ("int8",), (), blocks=3, batches=(1, 2))
    run = PartRun(part, {"int8": Subject("b", "c")}, LIMITS, TargetOptions(tmp_path))
    monkeypatch.setattr(target_runs, "SystemClock", lambda: clock)
    systems = {
        "int8": FakeSystem("int8", clock, tower=0.1, step=0.01),
        "transformers": FakeSystem("transformers", clock, tower=0.3, step=0.03),
        "optimum": _Broken("optimum", clock),
        "openvino": _Unwilling("openvino", clock),
    }
    errors: dict[str, str] = {}
    source = PictureSource(tmp_path / "pictures", 0)
    samples: dict[tuple[str, int], list[Any]] = {}
    for batch in part.batches:
        for name, found in target_runs._turns(run, batch, systems, errors, source):
            samples.setdefault((name, batch), []).extend(found)
    assert errors == {"optimum": "out of memory", "openvino": "cannot encode"}
    assert {key: len(value) for key, value in samples.items()} == {
        ("int8", 1): 3,
        ("int8", 2): 6,
        ("transformers", 1): 3,
        ("transformers", 2): 6,
    }
    shown = {key: [s.request.picture for s in value] for key, value in samples.items()}
    assert shown["int8", 2] == shown["transformers", 2]
    blocks = {name: target_runs._per_picture(part, samples[name, 1]) for name in ("int8",)}
    blocks["transformers"] = target_runs._per_picture(part, samples["transformers", 1])
    found = target_runs._ratios(part, blocks, errors)
    assert found["values"]["int8/transformers"]["value"] == pytest.approx(3.0)
    assert found["values"]["int8/of-fastest"]["value"] == pytest.approx(1 / 3)
    assert found["missing"]["int8/other"] == "optimum: out of memory"
    assert target_runs._equal_tokens(samples, "int8", 2) == 1.0


def test_a_kept_picture_is_shown_before_it_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    class Counting(FakeSystem):
        def answer(self, requests):  # type: ignore[no-untyped-def]
            seen.extend(request.picture for request in requests)
            return super().answer(requests)

    clock = SimulatedClock()
    part = Part("p", "t", "w", "kept", ("int8",), (), blocks=2)
    run = PartRun(part, {"int8": Subject("b", "c")}, LIMITS, TargetOptions(tmp_path))
    monkeypatch.setattr(target_runs, "SystemClock", lambda: clock)
    source = PictureSource(tmp_path / "pictures", 0)
    list(target_runs._turns(run, 1, {"int8": Counting("int8", clock)}, {}, source))
    assert seen == [path for path in dict.fromkeys(seen) for _ in range(2)]
    assert len(seen) == 6


def test_a_bundle_that_cannot_be_made_is_a_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(work: str, precision: str, *_: object) -> Subject:
        if precision != "fp32":
            raise OptionError("No such precision.\nsecond line")
        return Subject("b", "c")

    monkeypatch.setattr(target_runs, "_exported", refuse)
    part = Part("p", "t", "w", "caption", ("int4",), ())
    bundles, missing = target_runs._bundles(part, "w", TargetOptions(tmp_path), lambda _: None)
    assert bundles == {"fp32": Subject("b", "c")}
    assert missing == {"int4": "no int4 bundle: No such precision."}


def test_small_parts_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command itself, on small works, without peers: what they lack is said, not left out."""
    out = tmp_path / "out"
    common = ["targets", "--out", str(out), "--small", "--blocks", "2", "--threads", "1"]
    common += ["--work", str(tmp_path / "made"), "--peer-folder", str(tmp_path / "nowhere")]
    assert commands.main([*common, "--only", "cold,step,start"]) == 0
    written = json.loads((out / "targets.json").read_text())
    assert set(written["parts"]) == {"cold", "step", "start"}
    cold, step, start = (written["parts"][name] for name in ("cold", "step", "start"))
    assert cold["systems"]["fp32"]["limit"]["total"] > 0
    assert cold["systems"]["fp32"]["seconds"] > 0
    assert "not built" in cold["systems"]["transformers"]["error"]
    assert "not built" in cold["missing"]["fp32/transformers"]
    assert step["values"]["fp32/limit/1"]["value"] > 0
    assert step["values"]["int8/limit/16"]["value"] > 0
    assert start["values"]["fp32/seconds"]["value"] > 0
    assert start["systems"]["fp32"]["peak_bytes"] > start["systems"]["fp32"]["weight_bytes"] > 0
    capsys.readouterr()
    reasoned = ["--reason", "step=small matrices lie in the cache"]
    assert commands.main([*common, *reasoned]) == 0
    printed = capsys.readouterr().out
    assert "small matrices lie in the cache" in printed
    assert (out / "targets.txt").read_text() == printed
    assert commands.main([*common, "--print"]) == 0
    assert capsys.readouterr().out == printed


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "targets.json").write_text("{}")
    with pytest.raises(OptionError, match="holds no targets"):
        targets.read_targets(tmp_path / "targets.json")
    (tmp_path / "targets.json").write_text("{")
    with pytest.raises(OptionError, match="not JSON"):
        targets.read_targets(tmp_path / "targets.json")


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        targets.main(["--out", "x", "--only", "warm"])
    assert "no part warm" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        targets.main(["--out", "x", "--reason", "cold"])


def test_requests_of_the_tower_ask_for_no_caption() -> None:
    (tower,) = (part for part in PARTS if part.kind == "tower")
    assert target_runs._request(tower, 3, "p.jpg") == Request(3, "p.jpg", want="encode")
