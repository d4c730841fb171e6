"""What shapes the distribution before a token is drawn from it.

Each equals, element by element, the warper of transformers 5.23 that its docstring names. Where
that compares a float32 softmax with a threshold, torch and NumPy may differ in the softmax's last
bits: a token within about 1e-6 (relative) of the threshold may fall on the other side. Of equally
probable tokens at the edge of the nucleus the lowest ids go first (torch's sort is not stable).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.history import History
from primelens.decoding.processors import Scores

__all__ = ["Epsilon", "Eta", "MinP", "Temperature", "TopK", "TopP", "Typical", "softmax"]


def softmax(scores: Scores) -> Scores:
    """``[..., V]`` float32 probabilities; the sum is accumulated in float64."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = powers.sum(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    result: Scores = powers / total
    return result


def _kth_largest(scores: Scores, count: int) -> Scores:
    """``[R, 1]`` the ``count``-th largest score of every row."""
    width = scores.shape[1]
    place = width - min(count, width)
    result: Scores = np.partition(scores, place, axis=1)[:, place : place + 1]
    return result


class Temperature:
    """Divides all scores (``TemperatureLogitsWarper``); what overflows becomes infinite."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        with np.errstate(over="ignore"):  # the least float32 stands for minus infinity
            scores /= self._temperature


class TopK:
    """Keeps the ``count`` largest scores and the last one's equals (``TopKLogitsWarper``)."""

    def __init__(self, count: int, keep: int = 1) -> None:
        self._count = max(count, keep)

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        if self._count < scores.shape[1]:
            scores[scores < _kth_largest(scores, self._count)] = -np.inf


class TopP:
    """Keeps the most probable tokens that together reach ``mass`` (``TopPLogitsWarper``)."""

    def __init__(self, mass: float, keep: int = 1) -> None:
        self._rest, self._keep = np.float32(1 - mass), keep

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        for row in scores:  # rows differ in how many tokens are left after top-k
            self._cut(row)

    def _cut(self, row: Scores) -> None:
        values = np.sort(row[row > -np.inf])
        below = np.cumsum(softmax(values), dtype=np.float64).astype(np.float32) <= self._rest
        removed = min(int(below.sum()), max(len(values) - self._keep, 0))
        edge = values[removed]
        row[row < edge] = -np.inf
        equal = removed - int(
            np.searchsorted(values, edge)
        )  # that many of the edge's equals go too
        if equal:
            row[np.flatnonzero(row == edge)[:equal]] = -np.inf


class MinP:
    """Removes what is less probable than ``share`` of the most probable (``MinPLogitsWarper``)."""

    def __init__(self, share: float, keep: int = 1) -> None:
        self._share, self._keep = share, keep

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        probabilities = softmax(scores)
        removed = probabilities < self._share * probabilities.max(axis=1, keepdims=True)
        if self._keep > 1:
            removed &= probabilities < _kth_largest(probabilities, self._keep)
        scores[removed] = -np.inf


class Typical:
    """Keeps the tokens whose surprise is nearest to the expected one (``TypicalLogitsWarper``)."""

    def __init__(self, mass: float, keep: int = 1) -> None:
        self._mass, self._keep = np.float32(mass), keep

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        for row in scores:
            self._cut(row)

    def _cut(self, row: Scores) -> None:
        places = np.flatnonzero(row > -np.inf)
        normalized = _log_softmax(row[places])
        entropy = -np.nansum(normalized * np.exp(normalized), dtype=np.float64).astype(np.float32)
        distance = np.abs(-normalized - entropy)
        order = np.argsort(distance, kind="stable")
        mass = np.cumsum(softmax(row[places[order]]), dtype=np.float64).astype(np.float32)
        last = min(int((mass < self._mass).sum()), len(places) - 1)
        removed = distance > distance[order[last]]
        removed[order[: self._keep]] = False
        row[places[removed]] = -np.inf


class Epsilon:
    """Removes what is less probable than ``cutoff`` (``EpsilonLogitsWarper``)."""

    def __init__(self, cutoff: float, keep: int = 1) -> None:
        self._cutoff, self._keep = cutoff, keep

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        _cut_below(scores, softmax(scores) < np.float32(self._cutoff), self._keep)


class Eta:
    """Like `Epsilon`, with a cutoff that falls with the entropy (``EtaLogitsWarper``)."""

    def __init__(self, cutoff: float, keep: int = 1) -> None:
        self._cutoff, self._keep = np.float32(cutoff), keep

    def __call__(self, scores: Scores, history: History) -> None:  # noqa: ARG002 - the protocol's
        probabilities = softmax(scores)
        logs = np.maximum(_log_softmax(scores), np.finfo(np.float32).min)
        entropy = -(logs * probabilities).sum(axis=1, keepdims=True, dtype=np.float64)
        scaled = np.sqrt(self._cutoff) * np.exp(-entropy.astype(np.float32))
        _cut_below(scores, probabilities < np.minimum(self._cutoff, scaled), self._keep)


def _cut_below(scores: Scores, removed: NDArray[np.bool_], keep: int) -> None:
    """Remove, but never one of the ``keep`` largest of a row."""
    scores[removed & (scores < _kth_largest(scores, keep))] = -np.inf


def _log_softmax(scores: Scores) -> Scores:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    result: Scores = shifted - np.log(total).astype(np.float32)
    return result
