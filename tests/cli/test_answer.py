"""``primelens answer``: rows, options and refusals, with a model that answers by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import primelens
from primelens import Caption, CaptionOptions
from primelens.cli.app import app
from primelens.errors import InputError
from primelens.results import Timings


class Answerer:
    name = "fake"

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str], CaptionOptions]] = []

    def answer(self, image: str, questions: list[str], options: CaptionOptions) -> list[Caption]:
        self.asked.append((image, questions, options))
        if options.head == "none":
            raise InputError("The bundle has no head that answers.", remedy="Give another.")
        return [
            Caption(f"yes, {q}", (1,), -0.5, (-0.5,), "stop", Timings(), image, question=q)
            for q in questions
        ]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Answerer:
    answerer = Answerer()

    def load(name: str, **settings: Any) -> Answerer:
        answerer.name = name
        return answerer

    monkeypatch.setattr(primelens, "load", load)
    return answerer


def test_several_questions_are_one_call_and_one_row_each(model: Answerer) -> None:
    arguments = ["answer", "cat.png", "who?", "where?", "--model", "m", "--json", "--beams", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    ((image, questions, options),) = model.asked
    assert (image, questions, options.decoding.num_beams) == ("cat.png", ["who?", "where?"], 3)
    found = [json.loads(line) for line in result.output.splitlines()]
    assert [row["question"] for row in found] == questions
    assert [row["answer"] for row in found] == ["yes, who?", "yes, where?"]
    assert "caption" not in found[0]
    assert (found[0]["image"], found[0]["status"], found[0]["model"]) == ("cat.png", "ok", "m")


def test_text_names_the_question_where_there_are_several(model: Answerer) -> None:
    assert CliRunner().invoke(app, ["answer", "a.png", "who?"]).output == "yes, who?\n"
    both = CliRunner().invoke(app, ["answer", "a.png", "who?", "where?"]).output
    assert both == "who? yes, who?\nwhere? yes, where?\n"


def test_what_cannot_be_asked_fails(model: Answerer, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["answer", "a.png"]).exit_code == 2
    assert CliRunner().invoke(app, ["answer", "a.png", "q", "--set", "nonsense=1"]).exit_code == 2
    result = CliRunner().invoke(app, ["answer", "a.png", "who?", "--head", "none"])
    assert result.exit_code == 1
    assert "no head that answers" in result.output
