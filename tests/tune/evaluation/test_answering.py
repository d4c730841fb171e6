"""Answers: scores, baselines, and a human."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from primelens.errors import InputError
from primelens.tune.data import DataSource, Example, Question
from primelens.tune.data.example import RemoteImage
from primelens.tune.evaluation import HUMAN, Request, evaluate
from primelens.tune.evaluation.answering import AnswerScorer, frequent_answers, per_kind_answers
from primelens.tune.metrics import Resampling

QUICK = Resampling(samples=20)


def example(key: str, *asked: tuple[str, str]) -> Example:
    questions = tuple(
        Question(f"{key}{i}", text, (answer,) * 10) for i, (text, answer) in enumerate(asked)
    )
    return Example(key, RemoteImage(key), questions=questions)


EXAMPLES = [
    example("a", ("Is the cat in?", "yes"), ("How many cats?", "2")),
    example("b", ("Is the dog out?", "no"), ("How many dogs?", "3"), ("Is the sun up?", "no")),
    example("c", ("How many birds?", "3"), ("Why not?", "no")),
]


def test_frequent_answers_never_come_from_the_picture_itself() -> None:
    # Of b and c: no 3 times, 3 twice. Of a and c: all once each (ties). Of a and b: no twice.
    found = frequent_answers(EXAMPLES, EXAMPLES)
    assert found[:2] == ["no", "no"]
    assert found[5:] == ["no", "no"]


def test_answers_by_the_questions_beginning() -> None:
    found = per_kind_answers(EXAMPLES, EXAMPLES)
    # "is the" of b alone: no. "how many" of b and c: 3. "is the" of a: yes. "how many" of a and c,
    # each once. Of a and b, each once. "why not" is unknown elsewhere: the most frequent overall.
    assert found[0] == "no"
    assert found[1] == "3"
    assert found[2] == found[4] == "yes"
    assert found[3] in ("2", "3")
    assert found[6] == "no"


def test_a_human_is_scored_against_the_other_annotators() -> None:
    questions = (Question("q", "What?", ("cat", "cat", "dog", "cat", "cat")),)
    scorer = AnswerScorer([Example("a", RemoteImage("a"), questions=questions)])
    table = scorer.leave_one_out({"cats": ["cat"]}, QUICK)
    # Against 4 of the 5. Without a cat: cat cat cat dog; "cat" has (2/3·3 + 1)/4 = 3/4. Without the
    # dog: four cats, unanimous: 1. The human says cat four times out of five and dog once, then
    # against four cats: 0.
    assert table.rows["cats"]["VQA accuracy"].value == pytest.approx((4 * 0.75 + 1) / 5)
    assert table.rows[HUMAN]["VQA accuracy"].value == pytest.approx(4 * 0.75 / 5)


def test_questions_without_answers_are_refused() -> None:
    bare = Example("a", RemoteImage("a"), questions=(Question("q", "What?"),))
    with pytest.raises(InputError, match="Question q has no answers"):
        AnswerScorer([bare])


def _files(folder: Path) -> tuple[DataSource, str]:
    asked = [(1, 10, "What is it?", "cat"), (2, 10, "How many?", "2"), (3, 20, "How many?", "3")]
    questions = [{"question_id": q, "image_id": i, "question": t} for q, i, t, _ in asked]
    annotations = [
        {"question_id": q, "answers": [{"answer": a}] * 9 + [{"answer": "other"}]}
        for q, _, _, a in asked
    ]
    (folder / "q.json").write_text(json.dumps({"questions": questions}))
    (folder / "a.json").write_text(json.dumps({"annotations": annotations}))
    rows = [{"question_id": q, "answer": t} for q, t in ((1, "A cat"), (2, "two"), (3, "4"))]
    (folder / "r.json").write_text(json.dumps(rows))
    return DataSource(folder / "q.json", answers=folder / "a.json"), str(folder / "r.json")


def test_a_vqa_result_file_from_end_to_end(tmp_path: Path) -> None:
    data, results = _files(tmp_path)
    found = evaluate(Request(results, data, against=(results,), resampling=QUICK))
    first, second = found.report.tables
    assert first.rows["r.json"]["VQA accuracy"].value == pytest.approx(2 / 3)
    assert list(second.rows)[-1] == HUMAN
    assert "most frequent answer" in first.rows
    assert list(found.report.against) == ["r.json (other)"]
    assert found.report.pictures == 2
    assert found.predictions == {"1": "A cat", "2": "two", "3": "4"}
    assert found.says == "answers"


def test_a_result_file_without_an_answer_is_refused(tmp_path: Path) -> None:
    data, results = _files(tmp_path)
    rows = json.loads(Path(results).read_text())[:2]
    Path(results).write_text(json.dumps(rows))
    with pytest.raises(InputError, match="says nothing of 1 of 3 questions"):
        evaluate(Request(results, data))
