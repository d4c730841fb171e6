"""Decides what comes next: search strategies over logits.

A strategy speaks ids and arrays only. `Greedy` is here; further strategies (beam search, sampling)
implement the same protocol and need nothing else from the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.session import Step

__all__ = ["Continuation", "Greedy", "Limits", "Search", "log_softmax_at"]


@dataclass(frozen=True)
class Limits:
    """When sequences end.

    Attributes:
        eos_tokens: any of these ends a row.
        pad_token: fed to rows that have ended.
        max_new_tokens: per row, the longest continuation.
        min_new_tokens: no end token before that many tokens.
    """

    eos_tokens: tuple[int, ...]
    pad_token: int
    max_new_tokens: tuple[int, ...]
    min_new_tokens: int = 0


@dataclass
class Continuation:
    """A finished or growing continuation of one prompt."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None


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
        """One continuation per prompt, as far as it is known."""


def log_softmax_at(scores: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[R]`` natural-log probabilities of one token per row of ``[R, V]`` scores."""
    top = scores.max(axis=1, keepdims=True)
    total = np.exp(scores - top).sum(axis=1, dtype=np.float64)
    chosen = scores[np.arange(len(tokens)), tokens].astype(np.float64)
    result: NDArray[np.float64] = chosen - top[:, 0].astype(np.float64) - np.log(total)
    return result


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
    """

    def __init__(self, prompts: Sequence[Sequence[int]], limits: Limits) -> None:
        self._prompts, self._limits = prompts, limits
        self._eos = np.array(limits.eos_tokens, np.int64)
        self._results = [Continuation() for _ in prompts]

    @property
    def results(self) -> list[Continuation]:
        return self._results

    def begin(self) -> Step:
        return prompt_step(self._prompts, self._limits.pad_token)

    def advance(self, logits: NDArray[np.float32]) -> Step | None:
        self._forbid_early_end(logits)
        chosen = logits.argmax(axis=1).astype(np.int64)
        logprobs = log_softmax_at(logits, chosen)
        tokens = np.full((len(chosen), 1), self._limits.pad_token, np.int64)
        lengths = np.zeros(len(chosen), np.int64)
        for row, result in enumerate(self._results):
            if result.finish_reason is None:
                self._append(row, int(chosen[row]), float(logprobs[row]))
            if result.finish_reason is None:
                tokens[row, 0], lengths[row] = chosen[row], 1
        return Step(tokens, lengths) if lengths.any() else None

    def _forbid_early_end(self, logits: NDArray[np.float32]) -> None:
        if not self._limits.min_new_tokens or not self._eos.size:
            return
        for row, result in enumerate(self._results):
            if len(result.tokens) < self._limits.min_new_tokens:
                logits[row, self._eos] = -np.inf

    def _append(self, row: int, token: int, logprob: float) -> None:
        result = self._results[row]
        result.tokens.append(token)
        result.logprobs.append(logprob)
        if token in self._limits.eos_tokens:
            result.finish_reason = "stop"
        elif len(result.tokens) >= self._limits.max_new_tokens[row]:
            result.finish_reason = "length"
