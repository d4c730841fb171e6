"""Do the parts that a word was attended to matter to it? (Petsiuk et al., 2018: RISE.)

*Deletion* takes parts of the picture away, the most attended first, and follows the probability of
the word; *insertion* starts from nothing and puts them back in that order. A faithful map loses the
word early and finds it early: a small area under the first curve and a large one under the second.
Both are compared with random orders of the same parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from primelens.errors import OptionError
from primelens.results import EncodedImage
from primelens.tune.explain.attention import Explainer, Explanation, Word

__all__ = ["Faithfulness", "WordFaithfulness", "faithfulness"]

_BATCH = 8  # pictures per run of the tower

Curve = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WordFaithfulness:
    """One word's curves.

    Attributes:
        word: its text.
        deletion, insertion: probability of the word after each step.
        random_deletion, random_insertion: the same for random orders, their mean.
    """

    word: str
    deletion: Curve
    insertion: Curve
    random_deletion: Curve
    random_insertion: Curve

    @property
    def gain(self) -> tuple[float, float]:
        """By how much the map beats chance: area saved in deletion, area won in insertion."""
        return (
            area(self.random_deletion) - area(self.deletion),
            area(self.insertion) - area(self.random_insertion),
        )


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """All words' curves over the same shares of the picture.

    Attributes:
        shares: share of the picture that is taken away (put back) at each step, 0 to 1.
        words: one entry per word.
        orders: random orders that were averaged.
    """

    shares: Curve
    words: tuple[WordFaithfulness, ...]
    orders: int

    def summary(self) -> dict[str, float]:
        """Areas under the curves, means over the words: of the maps, and of random orders."""
        return {
            "deletion": float(np.mean([area(word.deletion) for word in self.words])),
            "random_deletion": float(np.mean([area(word.random_deletion) for word in self.words])),
            "insertion": float(np.mean([area(word.insertion) for word in self.words])),
            "random_insertion": float(
                np.mean([area(word.random_insertion) for word in self.words])
            ),
        }


def area(curve: Curve) -> float:
    """Area under a curve over evenly spaced shares from 0 to 1 (trapezoids)."""
    return float(((curve[1:] + curve[:-1]) / 2).mean())


def faithfulness(
    explainer: Explainer,
    explanation: Explanation,
    *,
    steps: int = 8,
    orders: int = 4,
    seed: int = 0,
) -> Faithfulness:
    """Deletion and insertion curves for every word.

    Args:
        explainer: the bundle that explained.
        explanation: what it said.
        steps: points of the curves beside the first.
        orders: random orders to compare with.
        seed: of the random orders.
    """
    if steps < 1 or orders < 1:
        raise OptionError("steps and orders must be at least 1.")
    parts = int(np.prod(explanation.grid))
    steps = min(steps, parts)
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(parts) for _ in range(orders)]
    mapped = [np.argsort(-word.attention.ravel(), kind="stable") for word in explanation.words]
    measure = _Measure(explainer, explanation, steps)
    chance = [measure.curves(order, explanation.words) for order in drawn]
    words = []
    for number, (word, order) in enumerate(zip(explanation.words, mapped, strict=True)):
        deletion, insertion = measure.curves(order, [word])
        words.append(
            WordFaithfulness(
                word.text,
                deletion[0],
                insertion[0],
                np.mean([pair[0][number] for pair in chance], axis=0),
                np.mean([pair[1][number] for pair in chance], axis=0),
            )
        )
    return Faithfulness(measure.shares, tuple(words), orders)


class _Measure:
    """Encodes masked pictures and reads off words' probabilities."""

    def __init__(self, explainer: Explainer, explanation: Explanation, steps: int) -> None:
        self._explainer, self._explanation = explainer, explanation
        caption = explanation.caption
        model = explainer.model
        kind = "caption" if caption.question is None else "answer"
        self._head = model.head(kind, explainer.head)
        self._pixels = model.preprocessing.normalized(explanation.picture)
        self._encoded = model.encode(explanation.picture)
        self._grid = explanation.grid
        self._counts = np.linspace(0, int(np.prod(self._grid)), steps + 1).round().astype(int)
        self.shares: Curve = self._counts / np.prod(self._grid)
        asked = explainer.prompt if caption.question is None else caption.question
        prompt = self._head.prompt(asked)
        self._first = len(prompt) - 1
        self._fed = np.array([*prompt, *caption.tokens[:-1]], np.int64)

    def curves(
        self, order: NDArray[np.int64], words: Sequence[Word]
    ) -> tuple[list[Curve], list[Curve]]:
        """Deletion and insertion curves of each word for one order of the parts."""
        keep = []
        for count in self._counts:
            away = np.zeros(len(order), bool)
            away[order[:count]] = True
            keep += [~away, away]
        probabilities = self._probabilities(np.array(keep), words)
        return [p[0::2] for p in probabilities], [p[1::2] for p in probabilities]

    def _probabilities(self, keep: NDArray[np.bool_], words: Sequence[Word]) -> list[Curve]:
        tokens = np.array(self._explanation.caption.tokens)
        found = []
        for start in range(0, len(keep), _BATCH):
            images = self._masked(keep[start : start + _BATCH])
            rows = np.tile(self._fed, (len(images), 1))
            lengths = np.full(len(images), len(self._fed))
            logits = self._head.prefill_logits(images, rows, lengths).astype(np.float64)
            logits = logits.reshape(len(images), len(self._fed), -1)[:, self._first :]
            logits -= logits.max(axis=2, keepdims=True)
            chosen = logits[:, np.arange(len(tokens)), tokens]
            found.append(chosen - np.log(np.exp(logits).sum(axis=2)))
        logprobs = np.concatenate(found)
        return [
            np.exp(logprobs[:, word.tokens.start : word.tokens.stop].sum(axis=1)) for word in words
        ]

    def _masked(self, keep: NDArray[np.bool_]) -> list[EncodedImage]:
        """The picture with only some of its parts, the others in the picture's mean colour."""
        _, height, width = self._pixels.shape
        rows = np.arange(height) * self._grid[0] // height
        columns = np.arange(width) * self._grid[1] // width
        shown = keep.reshape(-1, *self._grid)[:, rows][:, :, columns][:, None]
        mean = self._pixels.mean(axis=(1, 2), keepdims=True)
        pixels = np.where(shown, self._pixels, mean).astype(np.float32)
        taps = self._explainer.tower.run({"pixel_values": pixels})
        return [
            replace(
                self._encoded,
                taps={name: values[row].copy() for name, values in taps.items()},
                entries={},
            )
            for row in range(len(pixels))
        ]
