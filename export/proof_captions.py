"""Proves heads that write: captions beside the source's own ``generate``.

Texts have to be equal token for token. Where they are not, the source decides in float64: if its
float64 search finds the bundle's text, or holds both texts within its own rounding of each other,
it is a tie and counted; else the proof has failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from primelens import CaptionOptions, DecodingOptions
from primelens.export.gate import NOISE_FACTOR
from primelens.export.proof_subject import (
    Array,
    Case,
    Findings,
    Subject,
    Tokens,
    cases,
    prover,
)
from primelens.export.questions import ids_of

__all__ = ["CaptionProof", "Prompting", "end_token", "prove_captions"]


class Prompting(Protocol):
    """A `Reference` whose ``generate`` can be given the beginning of the text."""

    def generate_after(
        self, pixels: Array, prompt: Sequence[int], settings: Mapping[str, Any]
    ) -> list[Tokens]:
        """Continuations of start tokens and prompt, both cut off; special tokens as configured."""


def end_token(texts: Sequence[Sequence[int]]) -> int | None:
    """A token that ends some of ``texts`` early, not before three others, and not all of them."""
    for token in dict.fromkeys(token for text in texts for token in text):
        places = [list(text).index(token) for text in texts if token in text]
        if len(places) < len(texts) and min(places) >= 3:
            return token
    return None


@prover("caption")
def prove_captions(subject: Subject) -> Findings:
    """All `cases` on both sides."""
    if subject.head.question is None:
        return CaptionProof(subject).run()
    return _PromptedProof(subject).run()


class CaptionProof:
    """Both sides of one head that continues texts, case by case."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._head = subject, subject.head
        self._reference: Any = subject.head.reference
        self._found = Findings()

    def run(self) -> Findings:
        subject, texts = self._subject, []
        encoded = [subject.model.encode(picture) for picture in subject.pictures]
        for case in cases(subject.options, subject.work.prompt):
            prompt = self._prompt(case)
            wanted = self._wanted(case, prompt, slice(0, case.batch))
            captions = subject.model.caption(encoded[: case.batch], self._options(case, prompt))
            for k, (caption, text) in enumerate(zip(captions, wanted, strict=True)):
                self._compare(case, k, list(caption.tokens), text)
            if case.beams == 1:
                texts += wanted
        self._blind(texts)
        return self._found

    def _blind(self, texts: Sequence[Tokens]) -> None:
        """Report texts that would hide a defect."""
        self._found.failures += _blindness(texts, self._subject.work.variety)

    def _options(self, case: Case, prompt: Tokens) -> CaptionOptions:
        settings = tuple(self._head.generation.settings)
        return CaptionOptions(
            max_new_tokens=self._length(case, prompt),
            prompt=case.prompt,
            decoding=DecodingOptions(
                num_beams=case.beams, length_penalty=case.penalty, ignore=settings
            ),
        )

    def _prompt(self, case: Case) -> Tokens:
        if case.prompt is None:
            return []
        subject = self._subject
        wanted = subject.source.tokenizer(case.prompt, add_special_tokens=False)["input_ids"]
        found = subject.model.head(self._head.kind).text.encode(case.prompt)
        if list(found) != list(wanted):
            self._found.failures.append(f"{case}: the prompt is {found}, the source's {wanted}")
        return list(wanted)

    def _length(self, case: Case, prompt: Tokens) -> int:
        options, fed = self._subject.options, len(self._head.generation.start_tokens) + len(prompt)
        steps = options.steps if case.beams == 1 else options.beam_steps
        return min(steps, int(self._head.plan.max_positions) + 1 - fed)

    def _wanted(self, case: Case, prompt: Tokens, rows: slice) -> list[Tokens]:
        pixels, settings = self._subject.pixels[rows], self._settings(case, prompt)
        found: list[Tokens] = self._reference.generate_after(pixels, prompt, settings)
        return found

    def _settings(self, case: Case, prompt: Tokens) -> dict[str, Any]:
        """What the source's ``generate`` is given."""
        settings: dict[str, Any] = {"max_new_tokens": self._length(case, prompt)}
        if case.beams > 1:
            settings |= {"num_beams": case.beams, "length_penalty": case.penalty}
        return settings

    def _compare(self, case: Case, k: int, ours: Tokens, theirs: Tokens) -> None:
        self._found.searches += case.beams > 1
        if ours == theirs:
            self._found.tokens += len(theirs)
            return
        with self._reference.widen():
            exact = self._wanted(case, self._prompt(case), slice(k, k + 1))[0]
            gap, limit = self._gap(case, k, ours, theirs)
        if exact == ours or abs(gap) <= limit:
            self._found.ties += 1
            return
        self._found.failures.append(
            f"{case}, picture {k}: the source says {theirs}, the bundle {ours}; in float64 the "
            f"source's is ahead by {gap:.3g}, rounding explains {limit:.3g}"
        )

    def _gap(self, case: Case, k: int, ours: Tokens, theirs: Tokens) -> tuple[float, float]:
        """By how much the source prefers ``theirs``, and what rounding explains."""
        limit = NOISE_FACTOR * self._subject.rounding
        if case.beams == 1:
            pairs = enumerate(zip(ours, theirs, strict=False))
            step = next((i for i, (a, b) in pairs if a != b), None)
            if step is None:  # one ends where the other goes on: no two candidates differ
                return float("inf"), limit
            logits = self._logs(case, k, theirs)[step]
            return float(logits[theirs[step]] - logits[ours[step]]), limit
        scores = []
        for text in (theirs, ours):
            logs = self._logs(case, k, text)[np.arange(len(text)), text]
            scores.append(float(logs.sum()) / len(text) ** case.penalty)
        shorter, longer = sorted((len(ours), len(theirs)))
        # The errors of single logits add up like a random walk over the summands of a score.
        return scores[0] - scores[1], limit * longer**0.5 / shorter**case.penalty

    def _logs(self, case: Case, k: int, text: Tokens) -> Array:
        """``[n, V]`` log-probabilities before each token, from one pass of the source."""
        start = [*self._head.generation.start_tokens, *self._prompt(case)]
        tap = self._reference.taps(self._subject.pixels[k : k + 1])[self._head.tap]
        logits = self._reference.logits(tap, np.array([start + text[:-1]], np.int64))[0]
        logits = logits[len(start) - 1 :].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return logs


class _PromptedProof(CaptionProof):
    """Prompts go through an encoder of their own: what is written starts behind none of them."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._source: Any = subject.head.reference

    def _prompt(self, case: Case) -> Tokens:
        subject = self._subject
        (wanted,) = ids_of(subject.source.tokenizer, self._head, [case.prompt])
        found = subject.model.head(name=subject.name).question(case.prompt)
        if found != wanted:
            self._found.failures.append(f"{case}: the prompt is {found}, the source's {wanted}")
        return []

    def _wanted(self, case: Case, prompt: Tokens, rows: slice) -> list[Tokens]:
        pixels = self._subject.pixels[rows]
        (asked,) = ids_of(self._subject.source.tokenizer, self._head, [case.prompt])
        self._reference = self._source.asking([asked] * len(pixels))
        found: list[Tokens] = self._reference.generate(
            pixels, self._settings(case, prompt), plain=True
        )
        return found


def _blindness(texts: Sequence[Tokens], least: float) -> list[str]:
    """Why texts like these would hide a defect."""
    variety = float(np.mean([len(set(text)) / len(text) for text in texts]))
    found = []
    if variety < least:
        found.append(f"the proof is blind: {variety:.0%} of a text's tokens are distinct")
    if len({tuple(text) for text in texts}) < 3:
        found.append("the proof is blind: another picture or prompt makes no other text")
    if len({len(text) for text in texts}) < 2:
        found.append(f"the proof is blind: all texts have {len(texts[0])} tokens")
    return found
