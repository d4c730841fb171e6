"""Decides what comes next: search strategies over logits.

A strategy speaks ids and arrays only. `Greedy` is here, `primelens.decoding.sampling.Sampling` and
`primelens.decoding.beam.BeamSearch` beside it; they need nothing else from the loop.

Log-probabilities are always the model's own: natural logarithms of the softmax of its logits,
before any processor changed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.history import History
from primelens.decoding.processors import Processor
from primelens.decoding.session import Step
from primelens.decoding.top_k import top_k
from primelens.errors import OptionError

__all__ = [
    "Continuation",
    "Controls",
    "Greedy",
    "Limits",
    "Search",
    "StopTest",
    "log_softmax_at",
    "prompt_step",
    "top_logprobs",
]


@dataclass(frozen=True)
class Limits:
    """When sequences end.

    Attributes:
        eos_tokens: any of these ends a row.
        pad_token: fed to rows that have ended.
        max_new_tokens: per row, the longest continuation.
    """

    eos_tokens: tuple[int, ...]
    pad_token: int
    max_new_tokens: tuple[int, ...]


class StopTest(Protocol):
    """Whether a sequence ends for another reason than an end token."""

    @property
    def window(self) -> int:
        """How many of the last tokens the test looks at."""

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens`` (prompt included, at least `window` of them where there
        are as many) ends the sequence.
        """


@dataclass(frozen=True)
class Controls:
    """What a search obeys besides its limits.

    Attributes:
        processors: change the scores, in this order.
        stop: ends sequences by what they say.
        top_logprobs: that many alternatives are recorded for every token.
    """

    processors: tuple[Processor, ...] = ()
    stop: StopTest | None = None
    top_logprobs: int = 0

    @property
    def needs_history(self) -> bool:
        """Whether anything looks at the tokens decoded so far."""
        return bool(self.processors) or self.stop is not None


Alternatives = tuple[tuple[int, float], ...]


@dataclass
class Continuation:
    """A finished or growing continuation of one prompt.

    Attributes:
        tokens: ids after the prompt, the end token included.
        logprobs: the model's own log-probability of each.
        finish_reason: "stop" for an end token or a stop string, "length" for the limit.
        score: what a beam search ranked it by, `transformers`' ``sequences_scores``.
        alternatives: per token the most probable tokens there and their log-probabilities.
        others: further continuations of the same prompt.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    score: float | None = None
    alternatives: list[Alternatives] = field(default_factory=list)
    others: list[Continuation] = field(default_factory=list)


class Search(Protocol):
    """A strategy: told the logits, it answers with the next step."""

    def begin(self) -> Step:
        """The first step: every row's prompt."""

    def advance(self, logits: NDArray[np.float32]) -> Step | None:
        """Choose from ``[R, V]`` logits (which may be overwritten); None when all rows are
        finished.
        """

    @property
    def results(self) -> Sequence[Continuation]:
        """One continuation per prompt, as far as it is known; always the same objects."""


def log_softmax_at(scores: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[R]`` natural-log probabilities of one token per row of ``[R, V]`` scores."""
    top = scores.max(axis=1, keepdims=True)
    shares = scores - top
    total = np.exp(shares, out=shares).sum(axis=1, dtype=np.float64)  # while they are in the cache
    chosen = scores[np.arange(len(tokens)), tokens].astype(np.float64)
    result: NDArray[np.float64] = chosen - top[:, 0].astype(np.float64) - np.log(total)
    return result


def top_logprobs(logits: NDArray[np.float32], count: int) -> Alternatives:
    """The ``count`` most probable tokens of ``[V]`` logits, with their log-probabilities."""
    tokens = top_k(logits, count)
    top = logits[tokens[0]]
    total = np.exp(logits - top).sum(dtype=np.float64)
    found = logits[tokens].astype(np.float64) - np.float64(top) - np.log(total)
    return tuple(zip(tokens.tolist(), found.tolist(), strict=True))


def prompt_step(prompts: Sequence[Sequence[int]], pad_token: int) -> Step:
    """Prompts of different lengths as one right-padded step."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    tokens = np.full((len(prompts), int(lengths.max())), pad_token, np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return Step(tokens, lengths)


class Greedy:
    """The most probable token of every row; of equal ones the lowest id, as ``argmax`` does.

    Args:
        prompts: the ids that each row starts with, start token included.
        limits: when rows end; ``max_new_tokens`` has one entry per prompt.
        controls: what else is obeyed.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        controls: Controls = Controls(),
    ) -> None:
        self._prompts, self._limits, self._controls = prompts, limits, controls
        self._history = History(prompts) if controls.needs_history else None
        self._rows = [Continuation() for _ in prompts]

    @property
    def results(self) -> Sequence[Continuation]:
        return self._rows

    def begin(self) -> Step:
        return prompt_step(self._prompts, self._limits.pad_token)

    def advance(self, logits: NDArray[np.float32]) -> Step | None:
        chosen = self._choose(self._processed(logits))
        logprobs = log_softmax_at(logits, chosen)
        growing = np.array([row.finish_reason is None for row in self._rows])
        if self._history is not None:
            self._history.append(chosen, growing)
        tokens = np.full((len(chosen), 1), self._limits.pad_token, np.int64)
        lengths = np.zeros(len(chosen), np.int64)
        for row in np.flatnonzero(growing).tolist():
            if self._controls.top_logprobs:
                found = top_logprobs(logits[row], self._controls.top_logprobs)
                self._rows[row].alternatives.append(found)
            self._append(row, int(chosen[row]), float(logprobs[row]))
            if self._rows[row].finish_reason is None:
                tokens[row, 0], lengths[row] = chosen[row], 1
        return Step(tokens, lengths) if lengths.any() else None

    def _processed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is chosen from; the logits stay as they are, for the log-probabilities."""
        if not self._controls.processors or self._history is None:
            return logits
        scores = logits.copy()
        for processor in self._controls.processors:
            processor(scores, self._history)
        return scores

    def _choose(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """``[R]`` the next token of every row."""
        chosen: NDArray[np.int64] = scores.argmax(axis=1).astype(np.int64)
        if self._controls.processors:
            self._demand_choice(scores[np.arange(len(chosen)), chosen])
        return chosen

    def _demand_choice(self, best: NDArray[np.float32]) -> None:
        for row in np.flatnonzero(best == -np.inf).tolist():
            if self._rows[row].finish_reason is None:
                raise no_choice(len(self._rows[row].tokens))

    def _append(self, row: int, token: int, logprob: float) -> None:
        result = self._rows[row]
        result.tokens.append(token)
        result.logprobs.append(logprob)
        if token in self._limits.eos_tokens or self._stops(row):
            result.finish_reason = "stop"
        elif len(result.tokens) >= self._limits.max_new_tokens[row]:
            result.finish_reason = "length"

    def _stops(self, row: int) -> bool:
        stop = self._controls.stop
        if stop is None or self._history is None:
            return False
        return stop(self._history.row(row)[-stop.window :])


def no_choice(place: int) -> OptionError:
    """What is raised where the processors leave no token."""
    return OptionError(
        f"The decoding options leave no token to choose at place {place + 1} of the continuation.",
        remedy="Constraints, suppressed tokens and bad words forbid everything there: loosen one.",
    )
