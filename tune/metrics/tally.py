"""What a metric keeps of every image, and how the kept sums become scores.

Every metric here is a function of *sums over images*: BLEU of n-gram counts and lengths, the others
of (sum of scores, number of scores). Kept as one row per image, a bootstrap replicate is a weighted
sum of rows, and a thousand replicates are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from primelens.errors import InputError

__all__ = ["Floats", "Tally", "check_lengths", "joined", "mean_tally"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tally:
    """Sufficient statistics of one metric (which may give several scores, as BLEU-1 to 4).

    Attributes:
        names: the scores' names, M of them.
        rows: float64 ``[N, D]``, one row per image.
        finish: sums of rows ``[..., D]`` → scores ``[..., M]``; must take any leading shape.
    """

    names: tuple[str, ...]
    rows: Floats
    finish: Callable[[Floats], Floats]

    def __len__(self) -> int:
        return len(self.rows)

    def scores(self) -> dict[str, float]:
        """The scores of all images together."""
        values = self.finish(self.rows.sum(axis=0))
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def per_image(self) -> Floats:
        """``[N, M]``: what each image would score alone."""
        return self.finish(self.rows)


def _ratio(sums: Floats) -> Floats:
    counts = sums[..., 1:]
    return np.divide(sums[..., :1], counts, out=np.zeros_like(counts), where=counts > 0)


def mean_tally(name: str, totals: ArrayLike, counts: ArrayLike | None = None) -> Tally:
    """A score that is a mean: over images, or over several items of each image.

    Args:
        name: the score's name.
        totals: ``[N]``, the sum of an image's item scores.
        counts: ``[N]``, how many items each image has; one if not given.
    """
    sums = np.asarray(totals, np.float64)
    weights = np.ones_like(sums) if counts is None else np.asarray(counts, np.float64)
    return Tally((name,), np.stack([sums, weights], axis=1), _ratio)


def joined(tallies: list[Tally]) -> Tally:
    """Several rounds over the same images as one: every score is the mean over the rounds.

    Raises:
        InputError: the rounds differ in their scores or in the number of images.
    """
    first = tallies[0]
    if any(t.names != first.names or t.rows.shape != first.rows.shape for t in tallies):
        raise InputError("Rounds of different metrics or images cannot be joined.")
    width, finish, rounds = first.rows.shape[1], first.finish, len(tallies)

    def mean_over_rounds(sums: Floats) -> Floats:
        parts = sums.reshape(*sums.shape[:-1], rounds, width)
        return np.asarray(finish(parts).mean(axis=-2), np.float64)

    return Tally(first.names, np.concatenate([t.rows for t in tallies], axis=1), mean_over_rounds)


def check_lengths(what: str, number: int, other: str, expected: int) -> None:
    """Raise `InputError` where two lists that belong together differ in length, or are empty."""
    if number != expected:
        raise InputError(f"There are {number} {what} for {expected} {other}.")
    if not number:
        raise InputError(f"There are no {what}: nothing can be scored.")
