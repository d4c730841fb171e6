"""How sure a score is: bootstrap intervals, and a paired test between two systems.

The unit that is resampled is the image, with all that belongs to it. What a metric derives from the
whole corpus beforehand (CIDEr's document frequencies, the gallery of a retrieval) stays fixed, so
the interval speaks of these systems on images like these, and not of another corpus.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primelens.errors import InputError
from primelens.tune.metrics.tally import Floats, Tally

__all__ = ["Comparison", "Interval", "Resampling", "compare", "intervals"]

# Weights of this many replicates are held at once: 100 × 5,000 images are 4 MB.
_CHUNK = 100


@dataclass(frozen=True)
class Interval:
    """A score and its bootstrap percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """First system minus second.

    Attributes:
        difference: with the percentile interval of the paired bootstrap.
        p_value: two-sided, of the paired permutation test (how often exchanging the two systems'
            results image by image gives a difference at least as large).
    """

    difference: Interval
    p_value: float


@dataclass(frozen=True)
class Resampling:
    """How to resample.

    Attributes:
        samples: replicates.
        level: coverage of the interval.
        seed: the same seed gives the same intervals and p-values.
    """

    samples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; it must be at least 1.")
        if not 0 < self.level < 1:
            raise InputError(f"level is {self.level}; it must lie between 0 and 1.")


DEFAULT = Resampling()


def intervals(tally: Tally, how: Resampling = DEFAULT) -> dict[str, Interval]:
    """Every score of a tally with its interval."""
    return _intervals(tally.names, _point(tally), _replicates([tally], how)[0], how)


def compare(first: Tally, second: Tally, how: Resampling = DEFAULT) -> dict[str, Comparison]:
    """Two systems on the same images, in the same order.

    Raises:
        InputError: the tallies are of different metrics or numbers of images.
    """
    if first.names != second.names or first.rows.shape != second.rows.shape:
        raise InputError(
            "Two systems can be compared only on the same images and metrics: "
            f"{first.names} on {len(first)} images, {second.names} on {len(second)}."
        )
    one, other = _replicates([first, second], how)
    observed = _point(first) - _point(second)
    differences = _intervals(first.names, observed, one - other, how)
    exchanged = _exchanged(first, second, how)
    # Sums in another order differ in the last bits; without the tolerance the observed assignment
    # itself, drawn again, might not count as "at least as large".
    hits = (np.abs(exchanged) >= np.abs(observed) - 1e-12).sum(axis=0)
    p_values = (hits + 1) / (how.samples + 1)
    return {
        name: Comparison(differences[name], float(p))
        for name, p in zip(first.names, p_values, strict=True)
    }


def _point(tally: Tally) -> Floats:
    return tally.finish(tally.rows.sum(axis=0))


def _intervals(
    names: tuple[str, ...], point: Floats, replicates: Floats, how: Resampling
) -> dict[str, Interval]:
    tail = (1 - how.level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return {
        name: Interval(float(point[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(names)
    }


def _replicates(tallies: list[Tally], how: Resampling) -> list[Floats]:
    """Scores of bootstrap replicates ``[samples, M]`` per tally; the same images for all."""
    random = np.random.default_rng(how.seed)
    number = len(tallies[0])
    chunks: list[list[Floats]] = [[] for _ in tallies]
    for begin in range(0, how.samples, _CHUNK):
        size = min(_CHUNK, how.samples - begin)
        drawn = random.integers(0, number, (size, number))
        flat = np.bincount(
            (drawn + number * np.arange(size)[:, None]).ravel(), minlength=size * number
        )
        weights: NDArray[np.float64] = flat.reshape(size, number).astype(np.float64)
        for kept, tally in zip(chunks, tallies, strict=True):
            kept.append(tally.finish(weights @ tally.rows))
    return [np.concatenate(kept) for kept in chunks]


def _exchanged(first: Tally, second: Tally, how: Resampling) -> Floats:
    """Differences ``[samples, M]`` after exchanging the systems on a random half of the images."""
    random = np.random.default_rng((how.seed, 1))
    step = second.rows - first.rows
    one, other = first.rows.sum(axis=0), second.rows.sum(axis=0)
    found = []
    for begin in range(0, how.samples, _CHUNK):
        size = min(_CHUNK, how.samples - begin)
        swap = random.integers(0, 2, (size, len(first))).astype(np.float64) @ step
        found.append(first.finish(one + swap) - second.finish(other - swap))
    return np.concatenate(found)
