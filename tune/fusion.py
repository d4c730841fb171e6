"""How much each head of an ensemble has to say: weights from validation data.

The log-likelihood of known texts under ``softmax(Σ wᵢ · log pᵢ)`` is concave in the weights (a sum
of linear terms minus a log-partition), so between two heads, whose weights add up to 1, a
golden-section search finds the one best place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primelens.ensemble import log_softmax
from primelens.errors import InputError
from primelens.head import TextHead
from primelens.results import EncodedImage

__all__ = ["FittedWeights", "fit_weights"]

_GOLDEN = (math.sqrt(5) - 1) / 2
_CLOSE = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FittedWeights:
    """What was found.

    Attributes:
        weights: of the two heads; their sum is 1.
        together: mean log-probability of a token under the ensemble.
        alone: the same under each head by itself.
        tokens: how many were looked at.
    """

    weights: tuple[float, float]
    together: float
    alone: tuple[float, float]
    tokens: int


def fit_weights(
    heads: Sequence[TextHead], known: Iterable[tuple[EncodedImage, str | None, str]]
) -> FittedWeights:
    """Fit the weights of two heads.

    Args:
        heads: two heads of one bundle, as of `primelens.ensemble.EnsembleHead`.
        known: pictures, each with a question (or None) and a true text.

    Raises:
        InputError: there are not two heads, or no texts.
    """
    if len(heads) != 2:
        raise InputError(f"Weights are fitted for two heads, not {len(heads)}.")
    logs: tuple[list[Floats], list[Floats]] = ([], [])
    chosen: list[int] = []
    for image, question, text in known:
        tokens = [*heads[0].text.encode(text), heads[0].spec.generation.eos_tokens[0]]
        chosen += tokens
        for head, rows in zip(heads, logs, strict=True):
            rows.append(log_softmax(head.forced_logits(image, tokens, question)))
    if not chosen:
        raise InputError("There is no text to fit weights on.")
    first, second = (np.concatenate(rows) for rows in logs)
    picked = np.array(chosen)

    def likelihood(weight: float) -> float:
        mixed = log_softmax(weight * first + (1 - weight) * second)
        return float(mixed[np.arange(len(picked)), picked].mean())

    weight = _highest(likelihood)
    return FittedWeights(
        weights=(weight, 1 - weight),
        together=likelihood(weight),
        alone=(likelihood(1.0), likelihood(0.0)),
        tokens=len(picked),
    )


def _highest(function: Callable[[float], float]) -> float:
    """Where a concave function on 0 .. 1 is highest."""
    low, high = 0.0, 1.0
    while high - low > _CLOSE:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if function(left) < function(right):
            low = left
        else:
            high = right
    return max((0.0, (low + high) / 2, 1.0), key=function)
