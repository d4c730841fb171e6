"""Logits processors: change the scores of the next token by what was decoded before.

Each equals, element by element, the processor of transformers 5.23 that its docstring names
(``generation/logits_process.py``); the arithmetic is float32 as there. A processor works in place
on ``[R, V]`` scores and looks at the rows' `History`; none loops over rows or the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.history import History
from primelens.errors import OptionError

__all__ = [
    "BeginSuppress",
    "ExponentialDecay",
    "ForcedBos",
    "ForcedEos",
    "MinLength",
    "MinNewTokens",
    "NoRepeatNGram",
    "Normalize",
    "Processor",
    "RemoveInvalid",
    "RepetitionPenalty",
    "Scores",
    "SequenceBias",
    "Suppress",
    "bad_words",
]

Scores = NDArray[np.float32]


class Processor(Protocol):
    """Changes ``[R, V]`` float32 scores in place."""

    def __call__(self, scores: Scores, history: History) -> None: ...


def _ids(tokens: Sequence[int]) -> NDArray[np.int64]:
    return np.array(list(tokens), np.int64)


class SequenceBias:
    """Adds a bias to the last token of a sequence where the tokens before it were just decoded
    (``SequenceBiasLogitsProcessor``).

    Args:
        biases: sequence of ids → what is added to its last token's score.

    Raises:
        OptionError: at the first call, for an id outside of the vocabulary.
    """

    def __init__(self, biases: Mapping[tuple[int, ...], float]) -> None:
        lasts = sorted({sequence[-1] for sequence in biases})
        place = {token: i for i, token in enumerate(lasts)}
        self._targets = _ids(lasts)
        self._largest = max(max(sequence) for sequence in biases)
        self._single = np.zeros(len(lasts), np.float32)
        grouped: dict[int, list[tuple[int, ...]]] = {}
        for sequence, bias in biases.items():
            if len(sequence) == 1:
                self._single[place[sequence[0]]] = bias
            else:
                grouped.setdefault(len(sequence) - 1, []).append(sequence)
        # Per prefix length: [P, L] prefixes, [P] places among the targets, [P] biases.
        self._groups = [
            (
                np.array([sequence[:-1] for sequence in group], np.int64),
                _ids([place[sequence[-1]] for sequence in group]),
                np.array([biases[sequence] for sequence in group], np.float32),
            )
            for group in grouped.values()
        ]

    def __call__(self, scores: Scores, history: History) -> None:
        if self._largest >= scores.shape[1]:
            raise OptionError(
                f"Token {self._largest} is to be biased or forbidden; the vocabulary has "
                f"{scores.shape[1]} tokens."
            )
        bias = np.repeat(self._single[None], len(scores), axis=0)
        for prefixes, places, values in self._groups:
            recent = history.last(prefixes.shape[1])
            matching = (recent[:, None, :] == prefixes).all(axis=-1)
            added = np.where(matching, values, np.float32(0))
            # Several sequences may end in one token: add them one after the other, as there.
            np.add.at(bias.T, places, added.T)
        scores[:, self._targets] += bias


def bad_words(words: Sequence[Sequence[int]], eos: Sequence[int]) -> SequenceBias | None:
    """Forbids sequences of ids (``NoBadWordsLogitsProcessor``); an end token by itself cannot be
    forbidden. None where nothing is left to forbid.
    """
    ends = [[token] for token in eos]
    kept = [tuple(word) for word in words if list(word) not in ends]
    return SequenceBias(dict.fromkeys(kept, float("-inf"))) if kept else None


class RepetitionPenalty:
    """Divides positive and multiplies negative scores of every token that occurred, prompt included
    (``RepetitionPenaltyLogitsProcessor``).
    """

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def __call__(self, scores: Scores, history: History) -> None:
        seen = history.tokens
        rows, places = np.nonzero((seen >= 0) & (seen < scores.shape[1]))
        tokens = seen[rows, places]
        found = scores[rows, tokens]
        penalized = np.where(found < 0, found * self._penalty, found / self._penalty)
        scores[rows, tokens] = penalized  # a token seen twice is written twice, the same value


class NoRepeatNGram:
    """Forbids the token that would complete an n-gram a second time, prompt included
    (``NoRepeatNGramLogitsProcessor``).
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, scores: Scores, history: History) -> None:
        seen, size = history.tokens, self._size
        if seen.shape[1] < size:
            return
        windows = np.lib.stride_tricks.sliding_window_view(seen, size, axis=1)
        recent = history.last(size - 1)[:, None, :]
        lasts = windows[..., -1]
        matching = (windows[..., :-1] == recent).all(axis=-1)
        rows, places = np.nonzero(matching & (lasts >= 0) & (lasts < scores.shape[1]))
        scores[rows, lasts[rows, places]] = -np.inf


class MinLength:
    """No end token before the row, prompt included, has ``length`` tokens
    (``MinLengthLogitsProcessor``).
    """

    def __init__(self, length: int, eos: Sequence[int]) -> None:
        self._length, self._eos = length, _ids(eos)

    def __call__(self, scores: Scores, history: History) -> None:
        rows = np.flatnonzero(history.lengths < self._length)
        scores[rows[:, None], self._eos] = -np.inf


class MinNewTokens:
    """No end token before the row has ``length`` tokens after the prompt
    (``MinNewTokensLengthLogitsProcessor``).
    """

    def __init__(self, length: int, eos: Sequence[int]) -> None:
        self._length, self._eos = length, _ids(eos)

    def __call__(self, scores: Scores, history: History) -> None:
        rows = np.flatnonzero(history.new_lengths < self._length)
        if rows.size:
            scores[rows[:, None], self._eos] = -np.inf


def _force(scores: Scores, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
    if rows.size:
        scores[rows] = -np.inf
        scores[rows[:, None], tokens] = 0


class ForcedBos:
    """The second token of a row is ``token`` (``ForcedBOSTokenLogitsProcessor``)."""

    def __init__(self, token: int) -> None:
        self._token = _ids([token])

    def __call__(self, scores: Scores, history: History) -> None:
        _force(scores, np.flatnonzero(history.lengths == 1), self._token)


class ForcedEos:
    """The last token that fits is an end token (``ForcedEOSTokenLogitsProcessor``).

    Args:
        totals: ``[R]`` the most tokens of each row, prompt included.
        tokens: the end tokens.
    """

    def __init__(self, totals: Sequence[int], tokens: Sequence[int]) -> None:
        self._totals, self._tokens = _ids(totals), _ids(tokens)

    def __call__(self, scores: Scores, history: History) -> None:
        _force(scores, np.flatnonzero(history.lengths == self._totals - 1), self._tokens)


class RemoveInvalid:
    """NaN becomes 0, infinities the largest finite numbers (``InfNanRemoveLogitsProcessor``)."""

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        np.nan_to_num(scores, copy=False, nan=0.0)


class ExponentialDecay:
    """Raises the end tokens' scores exponentially from the ``start``-th new token on
    (``ExponentialDecayLengthPenalty``).
    """

    def __init__(self, start: int, factor: float, eos: Sequence[int]) -> None:
        self._start, self._factor, self._eos = start, factor, _ids(eos)

    def __call__(self, scores: Scores, history: History) -> None:
        beyond = history.new_lengths - self._start
        rows = np.flatnonzero(beyond > 0)
        if not rows.size:
            return
        growth = [self._factor**steps - 1 for steps in beyond[rows].tolist()]
        ends = scores[rows[:, None], self._eos]
        with np.errstate(over="ignore", invalid="ignore"):
            added = np.abs(ends) * np.array(growth, np.float32)[:, None]
        scores[rows[:, None], self._eos] = ends + np.where(np.isfinite(ends), added, np.float32(0))


class Suppress:
    """Forbids tokens (``SuppressTokensLogitsProcessor``)."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = _ids(tokens)

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        scores[:, self._tokens[self._tokens < scores.shape[1]]] = -np.inf


class BeginSuppress:
    """Forbids tokens directly after the prompt (``SuppressTokensAtBeginLogitsProcessor``).

    Args:
        tokens: what is forbidden.
        after_bos: a bos token is forced, so that a prompt of one token is followed by it first.
    """

    def __init__(self, tokens: Sequence[int], *, after_bos: bool) -> None:
        self._tokens, self._after_bos = _ids(tokens), after_bos

    def __call__(self, scores: Scores, history: History) -> None:
        begin = history.prompt_lengths
        if self._after_bos:
            begin = begin + (begin <= 1)
        rows = np.flatnonzero(history.lengths == begin)
        scores[rows[:, None], self._tokens[self._tokens < scores.shape[1]]] = -np.inf


class Normalize:
    """Log-softmax, last of all (``LogitNormalization``)."""

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        scores -= scores.max(axis=1, keepdims=True)
        total = np.exp(scores).sum(axis=1, keepdims=True, dtype=np.float64)
        scores -= np.log(total).astype(np.float32)
