"""``remove-head`` and ``split`` on a frozen bundle; what ``add-head`` and ``swap-head`` pass on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

WHOLE = Path(__file__).parents[1] / "runtime" / "data" / "bundle-v1"
Run = Callable[..., Result]


def test_split_writes_the_half_that_was_asked_for(run: Run, tmp_path: Path) -> None:
    done = run("split", WHOLE, "--text-only", "--out", tmp_path / "text")
    assert (done.exit_code, "text-only" in done.output) == (0, True)
    assert not (tmp_path / "text" / "tower.onnx").exists()
    again = run("split", WHOLE, "--tower-only", "--out", tmp_path / "text")
    assert again.exit_code == 1
    assert "is there already" in again.output
    assert not (tmp_path / "text" / "tower.onnx").exists()
    assert run("split", WHOLE, "--tower-only", "--out", tmp_path / "text", "--overwrite").exit_code == 0  # fmt: skip # noqa: E501
    assert (tmp_path / "text" / "tower.onnx").exists()
    assert run("verify", tmp_path / "text").exit_code == 0
    assert run("split", WHOLE, "--out", tmp_path / "neither").exit_code == 2


def test_remove_head(run: Run, tmp_path: Path) -> None:
    wrong = run("remove-head", WHOLE, "--name", "answer", "--out", tmp_path / "out")
    assert (wrong.exit_code, "It has: caption" in wrong.output) == (1, True)
    done = run("remove-head", WHOLE, "--name", "caption", "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert json.loads((tmp_path / "out" / "bundle.json").read_text())["heads"] == {}


@pytest.mark.parametrize("verb", ["add-head", "swap-head"])
def test_what_is_asked_reaches_the_exporter(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    heads = pytest.importorskip("primelens.export.heads")
    asked: list[Any] = []

    def fake(*arguments: Any) -> Any:
        asked.extend(arguments)
        return heads.ExportReport(tmp_path, {"failures": []}, (), {"load": 1.0}, 5)

    monkeypatch.setattr(heads, verb.replace("-", "_"), fake)
    chosen = (
        "--head",
        "b",
        "--kind",
        "answer",
        "--precision",
        "int8",
        "--agreement",
        "0.5",
        "--allow-mismatch",
    )
    done = run(verb, "bundle", "checkpoint", "--name", "new", "--out", tmp_path, *chosen, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["passed"] is True
    bundle, checkpoint, name, options = asked
    assert (bundle, checkpoint, name) == ("bundle", "checkpoint", "new")
    assert (options.out, options.head, options.kind) == (tmp_path, "b", "answer")
    assert options.precision == "int8"
    assert (options.gate.agreement, options.gate.allow_mismatch) == (0.5, True)
    assert run(verb, "bundle", "checkpoint").exit_code == 2  # no name
