"""Statistics of timings: percentiles, intervals, and whether two systems differ.

Timings of one machine drift: heat, neighbours, frequency. Requests close in time share that drift,
so they are *not* independent samples, and a test that treats them so finds differences that are
not there. The unit here is therefore the **block**: a short run of requests of one system, next to
the same run of the other. All resampling draws blocks, never requests.

* Interleaved runs (A B A B …) are compared pair by pair: the ratio within a pair is free of any
  drift slower than a pair. Rank test: Wilcoxon's signed rank over the pairs.
* Runs that were not interleaved (two files) are compared block against block: Mann-Whitney over
  block medians; the bootstrap draws runs of neighbouring blocks, as long as their autocorrelation
  asks for.

Intervals are percentile bootstrap intervals, expanded for few blocks as Hesterberg (*What teachers
should know about the bootstrap*, 2015) describes: plain ones over five blocks are far too short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "PERCENTILES",
    "Comparison",
    "Interval",
    "block_medians",
    "centre_interval",
    "compare_blocks",
    "mean_interval",
    "percentile",
    "percentiles",
]

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
LEAST_FOR_P999 = 10_000
_RESAMPLES = 4000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that covers the true value with probability ``level``."""

    low: float
    estimate: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return not self.low <= value <= self.high


def percentile(samples: ArrayLike, q: float) -> float:
    """The ``q``-th percentile (0 to 100), linear between the two nearest order statistics.

    Raises:
        ValueError: there are no samples, or ``q`` is out of range.
    """
    values = np.asarray(samples, np.float64).ravel()
    if not values.size:
        raise ValueError("a percentile of no samples")
    if not 0.0 <= q <= 100.0:
        raise ValueError(f"the percentile {q} is not between 0 and 100")
    return float(np.percentile(values, q))


def percentiles(samples: ArrayLike) -> dict[str, float]:
    """``{"p50": …, "p90": …, "p95": …, "p99": …}``; p99.9 only from 10,000 samples on.

    With fewer samples the thousandth part is a handful of values, and their percentile says more
    about luck than about the system.
    """
    values = np.asarray(samples, np.float64).ravel()
    found = {f"p{q:g}": percentile(values, q) for q in PERCENTILES}
    if values.size >= LEAST_FOR_P999:
        found["p99.9"] = percentile(values, 99.9)
    return found


def block_medians(blocks: Sequence[ArrayLike]) -> Floats:
    """``[N]`` medians of N blocks of samples."""
    return np.array([percentile(block, 50.0) for block in blocks], np.float64)


@dataclass(frozen=True)
class Comparison:
    """How much slower (or larger) the second of two systems is.

    Attributes:
        ratio: second over first, geometric mean over blocks, with its bootstrap interval.
        p_value: of the rank test named by ``test``.
        test: "signed-rank" for interleaved pairs, "mann-whitney" for separate runs.
        blocks: number of blocks of each system.
        tolerance: ratios closer to 1 than this do not count as a difference.
    """

    ratio: Interval
    p_value: float
    test: Literal["signed-rank", "mann-whitney"]
    blocks: tuple[int, int]
    tolerance: float = 0.05

    @property
    def significant(self) -> bool:
        """The interval excludes 1 and the rank test agrees."""
        return self.ratio.excludes(1.0) and self.p_value < 1.0 - self.ratio.level

    @property
    def verdict(self) -> Literal["slower", "faster", "no difference"]:
        """What may be said of the second system: more than the tolerance, *and* significant."""
        if not self.significant or abs(self.ratio.estimate - 1.0) <= self.tolerance:
            return "no difference"
        return "slower" if self.ratio.estimate > 1.0 else "faster"


def compare_blocks(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    paired: bool,
    tolerance: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare two systems' blocks of timings (smaller is better).

    Args:
        first, second: blocks of samples in the order in which they were taken.
        paired: block i of both was taken side by side (interleaved).
        tolerance: see `Comparison`.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two blocks, unequal numbers of pairs, a sample that is not positive.
    """
    a, b = _logs(first), _logs(second)
    if min(a.size, b.size) < 2:
        raise ValueError("a comparison needs at least two blocks of each system")
    if paired and a.size != b.size:
        raise ValueError(f"{a.size} and {b.size} blocks cannot be pairs")
    random = np.random.default_rng(seed)
    if paired:
        ratio = _interval(b - a, _resampled_means(b - a, 1, random))
        p_value, test = _signed_rank(b - a), "signed-rank"
    else:
        means = _resampled_means(b, _run_length(b), random) - _resampled_means(
            a, _run_length(a), random
        )
        effective = min(a.size / _run_length(a), b.size / _run_length(b))
        ratio = _interval_of(float(b.mean() - a.mean()), means, effective)
        p_value, test = _mann_whitney(a, b), "mann-whitney"
    kind: Literal["signed-rank", "mann-whitney"] = (
        "signed-rank" if test == "signed-rank" else "mann-whitney"
    )
    return Comparison(_exponential(ratio), p_value, kind, (a.size, b.size), tolerance)


def mean_interval(values: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of one value per block, with its bootstrap interval."""
    numbers = np.asarray(values, np.float64).ravel()
    means = _resampled_means(numbers, 1, np.random.default_rng(seed))
    return _interval(numbers, means, level)


def centre_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Centre of one value per block, where some blocks are far off: Hodges and Lehmann (1963).

    The median of all means of two values, and the interval of all centres that Wilcoxon's signed
    rank test does not reject. Holds where values scatter alike to both sides, as the difference of
    two systems that take turns does. Below six values the interval is the whole range, and covers
    less than 95 %.
    """
    numbers = np.asarray(values, np.float64).ravel()
    n = numbers.size
    if not n:
        raise ValueError("a centre of no values")
    first, second = np.triu_indices(n)
    means = np.sort((numbers[first] + numbers[second]) / 2)
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    cut = max(0, math.floor(means.size / 2 - z * deviation))
    return Interval(float(means[cut]), float(np.median(means)), float(means[-1 - cut]), level)


def _logs(blocks: Sequence[ArrayLike]) -> Floats:
    medians = block_medians(blocks)
    if not (medians > 0).all():
        raise ValueError("timings must be positive")
    logs: Floats = np.log(medians)
    return logs


def _resampled_means(values: Floats, run: int, random: np.random.Generator) -> Floats:
    """``[_RESAMPLES]`` means of circular runs of ``run`` neighbouring values, drawn anew."""
    count = -(-values.size // run)
    starts = random.integers(0, values.size, (_RESAMPLES, count, 1))
    chosen = (starts + np.arange(run)) % values.size
    means: Floats = values[chosen.reshape(_RESAMPLES, -1)[:, : values.size]].mean(axis=1)
    return means


def _run_length(values: Floats) -> int:
    """How many neighbouring blocks hang together: (1 + r) / (1 - r) for lag-1 correlation r."""
    if values.size < 8:
        return 1
    centred = values - values.mean()
    power = float(centred @ centred)
    if power == 0.0:
        return 1
    lag = float(centred[:-1] @ centred[1:]) / power
    # The estimate is biased downwards by about (1 + 3 r) / n (Kendall 1954); undo that.
    lag = min(0.95, max(0.0, lag + (1.0 + 3.0 * lag) / values.size))
    return max(1, min(values.size // 4, round((1.0 + lag) / (1.0 - lag))))


def _interval(values: Floats, means: Floats, level: float = 0.95) -> Interval:
    return _interval_of(float(values.mean()), means, values.size, level)


def _interval_of(estimate: float, means: Floats, effective: float, level: float = 0.95) -> Interval:
    from scipy.special import ndtr, stdtrit  # type: ignore[import-untyped]

    n = max(2.0, effective)
    tail = (1.0 - level) / 2.0
    expanded = float(ndtr(math.sqrt(n / (n - 1.0)) * stdtrit(n - 1.0, tail)))
    low, high = np.quantile(means, [expanded, 1.0 - expanded])
    return Interval(min(float(low), estimate), estimate, max(float(high), estimate), level)


def _exponential(interval: Interval) -> Interval:
    low, estimate, high = np.exp([interval.low, interval.estimate, interval.high])
    return Interval(float(low), float(estimate), float(high), interval.level)


def _signed_rank(differences: Floats) -> float:
    from scipy.stats import wilcoxon  # type: ignore[import-untyped]

    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)


def _mann_whitney(first: Floats, second: Floats) -> float:
    """Two-sided; the number of blocks is taken down to what their autocorrelation leaves of it."""
    from scipy.stats import mannwhitneyu

    thinned = [values[:: _run_length(values)] for values in (first, second)]
    return float(mannwhitneyu(*thinned, alternative="two-sided").pvalue)
