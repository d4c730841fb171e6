"""Answers: systems, baselines, and the tables they come into."""

from __future__ import annotations

from pathlib import Path

from primelens.tune.data import read_answers
from primelens.tune.evaluation.answering import AnswerScorer, frequent_answers, per_kind_answers
from primelens.tune.evaluation.stage import Evaluation, Stage
from primelens.tune.evaluation.systems import (
    Predictions,
    answer_examples,
    is_result_file,
    require_all,
)

__all__ = ["answered"]

FREQUENT_ANSWER = "most frequent answer"
SAME_BEGINNING = "most frequent answer for the question's beginning"


def answered(stage: Stage) -> Evaluation:
    """Let the systems answer, and score them."""
    how = stage.request.resampling

    def said(name: str) -> Predictions:
        if is_result_file(name):
            return Predictions(Path(name).name, read_answers(Path(name)))
        return answer_examples(stage.speaker(name), stage.examples, stage.progress)

    AnswerScorer(stage.examples)  # questions without a truth are refused before anybody answers
    field = stage.field(said)
    scorer = AnswerScorer(stage.examples)
    keys = [question.id for question in scorer.questions]
    systems = {title: require_all(p, keys, "questions") for title, p in field.all.items()}
    pool = stage.examples if stage.pool is None else stage.pool
    systems[FREQUENT_ANSWER] = frequent_answers(stage.examples, pool)
    systems[SAME_BEGINNING] = per_kind_answers(stage.examples, pool)
    tables = [scorer.table(systems, how)]
    if scorer.kinds:
        tables.append(scorer.by_kind(systems, how))
    if isinstance(stage.request.data, str):
        stage.notes.append("No human row: what is true of a scene is known and not judged.")
    elif scorer.fewest_answers > 1:
        tables.append(scorer.leave_one_out(systems, how))
    report = stage.report(field, tables, lambda title: scorer.tallies(systems[title]))
    own = dict(zip(keys, systems[field.main.name], strict=True))
    return Evaluation(report, own, "answers")
