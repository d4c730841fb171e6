"""``evaluate``: from arguments to a report and its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

pytest.importorskip("torch", reason="primelens.tune may import torch")

from primelens.tune.evaluation.scene_tasks import question_examples

Run = Callable[..., Result]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"file_name": f"{n}.png", "captions": [f"a {word}", f"the {word}", "a thing"]}
        for n, word in enumerate(("cat", "dog", "bird"))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    results = [{"image_id": row["file_name"], "caption": row["captions"][0]} for row in rows]
    (tmp_path / "r.json").write_text(json.dumps(results))
    return folder


def test_a_result_file_is_measured_and_written(run: Run, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("evaluate", tmp_path / "r.json", "--data", album, "--samples", "20", "--out", out)
    assert result.exit_code == 0, result.output
    assert "a human" in result.stdout
    assert "r.json" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["pictures"] == 3
    assert report["resampling"] == {"samples": 20, "level": 0.95, "seed": 0}
    assert (out / "report.md").read_text().startswith("## r.json on data, 3 pictures")
    assert json.loads((out / "results.json").read_text()) == json.loads(
        (tmp_path / "r.json").read_text()
    )
    as_json = run("evaluate", tmp_path / "r.json", "--data", album, "--samples", "20", "--json")
    assert json.loads(as_json.stdout) == report


def test_against_and_a_wrong_option(run: Run, album: Path, tmp_path: Path) -> None:
    system = tmp_path / "r.json"
    result = run("evaluate", system, "--data", album, "--samples", "20", "--against", system)
    assert "minus r.json (other), paired" in result.stdout
    for options, said in (
        (("--format", "cocoa"), "'cocoa' is no data format"),
        (("--pool-split", "train"), "another split"),
        (("--samples", "0"), "samples is 0"),
    ):
        failed = run("evaluate", system, "--data", album, *options)
        assert failed.exit_code == 1
        assert said in failed.stderr


def test_tasks_and_drawn_data(run: Run, album: Path, tmp_path: Path) -> None:
    system = tmp_path / "r.json"
    for options, said in (
        (("--data", album, "--task", "retrieval"), "only a bundle can rank"),
        (("--data", album, "--task", "zero-shot"), "no picture with a label"),
        (("--data", "scene-objects:test:2"), "only a bundle can rank"),
        (("--data", "scene-questions:test:x"), "names no scenes"),
    ):
        failed = run("evaluate", system, *options)
        assert failed.exit_code == 1
        assert said in failed.stderr
    answers = [
        {"question_id": question.id, "answer": question.answers[0]}
        for example in question_examples("test", 3)
        for question in example.questions
    ]
    system.write_text(json.dumps(answers))
    out = tmp_path / "out"
    result = run(
        "evaluate", system, "--data", "scene-questions:test:3", "--samples", "9", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "VQA accuracy by kind of question" in result.stdout
    assert json.loads((out / "results.json").read_text()) == answers
    rows = json.loads((out / "report.json").read_text())["tables"][0]["rows"]
    assert rows["r.json"]["VQA accuracy"]["value"] == 1
