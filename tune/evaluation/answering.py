"""Answers to questions about pictures: VQA accuracy and token F1, with baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from primelens.errors import InputError
from primelens.tune.data import Example, Question
from primelens.tune.evaluation.baselines import most_frequent_texts
from primelens.tune.evaluation.report import HUMAN, Table, scored
from primelens.tune.metrics import (
    Resampling,
    Tally,
    joined,
    mean_tally,
    token_f1_tally,
    vqa_accuracy,
    vqa_accuracy_tally,
)

__all__ = ["AnswerScorer", "frequent_answers", "per_kind_answers"]


class AnswerScorer:
    """Scores systems on all questions of N pictures.

    Args:
        examples: each with one or more answered questions.

    Raises:
        InputError: a question has no annotator's answer.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.questions = [question for example in examples for question in example.questions]
        self._image = [row for row, example in enumerate(examples) for _ in example.questions]
        self._truth = [question.answers for question in self.questions]
        for question in self.questions:
            if not question.answers:
                raise InputError(
                    f"Question {question.id} has no answers to compare with.",
                    remedy="Give the file of annotations too.",
                )

    def tallies(self, answers: Sequence[str]) -> list[Tally]:
        """VQA accuracy and token F1; ``answers`` in the order of ``questions``."""
        return self._against(answers, self._truth)

    def table(self, systems: Mapping[str, Sequence[str]], how: Resampling) -> Table:
        """All systems on all questions."""
        rows = {name: scored(self.tallies(answers), how) for name, answers in systems.items()}
        return Table(f"{len(self.questions)} questions, all answers of each", rows)

    @property
    def fewest_answers(self) -> int:
        """Of any question."""
        return min(len(own) for own in self._truth)

    @property
    def kinds(self) -> list[str]:
        """Kinds that the data give their questions, in order of appearance."""
        return list(dict.fromkeys(question.kind for question in self.questions if question.kind))

    def by_kind(self, systems: Mapping[str, Sequence[str]], how: Resampling) -> Table:
        """VQA accuracy of the questions of each kind."""
        asked = {kind: [q.kind == kind for q in self.questions] for kind in self.kinds}
        rows = {
            name: scored([self._of(kind, own, answers) for kind, own in asked.items()], how)
            for name, answers in systems.items()
        }
        return Table("VQA accuracy by kind of question, with the number of each", rows)

    def _of(self, kind: str, chosen: Sequence[bool], answers: Sequence[str]) -> Tally:
        """The accuracy of the chosen questions; a picture without one weighs nothing."""
        totals = np.zeros((2, self._image[-1] + 1))
        for row, own, answer, truth in zip(self._image, chosen, answers, self._truth, strict=True):
            if own:
                totals[:, row] += vqa_accuracy(answer, truth), 1
        return mean_tally(f"{kind} ({sum(chosen)})", *totals)

    def leave_one_out(self, systems: Mapping[str, Sequence[str]], how: Resampling) -> Table:
        """Everyone against the same number of annotators, a human among them.

        As `primelens.tune.evaluation.captioning.CaptionScorer.leave_one_out`, with answers.
        """
        rounds = range(self.fewest_answers)
        answers = {name: [own] * len(rounds) for name, own in systems.items()}
        answers[HUMAN] = [[own[j] for own in self._truth] for j in rounds]
        others = [[[own[i] for i in rounds if i != j] for own in self._truth] for j in rounds]
        rows = {}
        for name, by_round in answers.items():
            parts = [self._against(by_round[j], others[j]) for j in rounds]
            rows[name] = scored([joined(list(part)) for part in zip(*parts, strict=True)], how)
        return Table(
            f"Leave one out: everyone against {len(rounds) - 1} annotators, mean of "
            f"{len(rounds)} rounds",
            rows,
        )

    def _against(self, answers: Sequence[str], truth: Sequence[Sequence[str]]) -> list[Tally]:
        return [
            vqa_accuracy_tally(answers, truth, self._image),
            token_f1_tally(answers, truth, self._image),
        ]


def frequent_answers(examples: Sequence[Example], pool: Sequence[Example]) -> list[str]:
    """The most frequent answer of the other pictures of the pool, for every question."""
    by_picture = {e.id: [a for q in e.questions for a in q.answers] for e in pool}
    chosen = most_frequent_texts([example.id for example in examples], by_picture)
    return [text for e, text in zip(examples, chosen, strict=True) for _ in e.questions]


def per_kind_answers(examples: Sequence[Example], pool: Sequence[Example]) -> list[str]:
    """The same among the questions that begin with the same two words.

    A question whose beginning the rest of the pool does not know gets the most frequent answer.
    """
    chosen = frequent_answers(examples, pool)
    known: dict[str, dict[str, list[str]]] = {}
    for example in pool:
        for question in example.questions:
            own = known.setdefault(_beginning(question), {}).setdefault(example.id, [])
            own += question.answers
    places: dict[str, list[int]] = {}
    asked = [(example.id, question) for example in examples for question in example.questions]
    for place, (key, question) in enumerate(asked):
        if known.get(_beginning(question), {}).keys() - {key}:
            places.setdefault(_beginning(question), []).append(place)
    for kind, rows in places.items():
        usual = most_frequent_texts([asked[row][0] for row in rows], known[kind])
        for row, text in zip(rows, usual, strict=True):
            chosen[row] = text
    return chosen


def _beginning(question: Question) -> str:
    return " ".join(question.text.lower().split()[:2])
