"""Proves heads that answer: several questions about every picture, at once and by batches.

The cases are those of captions, and so is what counts as equal; a batch of pictures is asked all
its questions in one call, whatever their lengths, and every question by itself is what the source's
``generate`` is given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from primelens.export.proof_captions import CaptionProof
from primelens.export.proof_subject import Case, Findings, Subject, Tokens, cases, prover
from primelens.export.questions import PER_PICTURE, ids_of, questions_for

__all__ = ["prove_answers"]


@prover("answer")
def prove_answers(subject: Subject) -> Findings:
    """All `cases` on both sides, every case with `PER_PICTURE` questions about each picture."""
    if subject.head.question is None:  # it continues its questions as captions do their prompts
        return CaptionProof(subject).run()
    return _AnswerProof(subject).run()


class _AnswerProof(CaptionProof):
    """Rows are questions: row r is about picture ``r // PER_PICTURE``."""

    def __init__(self, subject: Subject) -> None:
        rows = replace(subject, pixels=np.repeat(subject.pixels, PER_PICTURE, axis=0))
        super().__init__(rows)
        tokenizer = subject.source.tokenizer
        self._questions = questions_for(tokenizer, subject.head, len(subject.pictures))
        self._ids = ids_of(tokenizer, subject.head, self._questions)
        self._source: Any = subject.head.reference

    def run(self) -> Findings:
        subject, texts = self._subject, []
        encoded = [subject.model.encode(picture) for picture in subject.pictures]
        head = subject.model.head(name=subject.name)
        for case in cases(subject.options, None):
            count = min(case.batch, len(encoded))
            wanted = self._wanted(case, [], slice(0, count * PER_PICTURE))
            asked = [self._questions[k * PER_PICTURE :][:PER_PICTURE] for k in range(count)]
            for progress in head.decode(encoded[:count], self._options(case, []), asked):
                found = progress.results
            for row, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
                self._compare(case, row, list(ours.tokens), theirs)
            if case.beams == 1:
                texts += wanted
        self._blind(texts)
        return self._found

    def _wanted(self, case: Case, prompt: Tokens, rows: slice) -> list[Tokens]:
        self._reference = self._source.asking(self._ids[rows])
        found: list[Tokens] = self._reference.generate(
            self._subject.pixels[rows], self._settings(case, prompt), plain=True
        )
        return found
