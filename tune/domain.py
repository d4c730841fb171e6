"""Is this picture of the kind that a model was tuned on? Cheap scores and how well they tell.

A small captioner says something about every picture, with as fluent a sentence about a photograph
as about a scene. Two numbers that cost next to nothing can warn: how far the pooled tower states
lie from those of known pictures, and how sure the decoder was of its own words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DomainFit:
    """A Gaussian with a diagonal covariance around the pooled states of known pictures.

    Attributes:
        mean: ``[C]`` float32.
        scale: ``[C]`` float32, one over the standard deviation.
        threshold: distance beyond which a picture is called foreign.
    """

    mean: np.ndarray
    scale: np.ndarray
    threshold: float

    def distance(self, pooled: np.ndarray) -> np.ndarray:
        """Root mean square of standardised pooled states ``[N, C]``: ``[N]``, near 1 at home."""
        spread: np.ndarray = np.sqrt(np.mean(np.square((pooled - self.mean) * self.scale), axis=1))
        return spread


def pool(states: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over positions: ``[N, S, C]`` to ``[N, 2 * C]`` float32."""
    states = states.astype(np.float32)
    return np.concatenate([states.mean(axis=1), states.std(axis=1)], axis=1)


def fit_domain(pooled: np.ndarray, false_alarms: float = 0.01) -> DomainFit:
    """Fit to the pooled states of known pictures.

    Args:
        pooled: ``[N, C]``, of pictures that the model was not tuned on.
        false_alarms: share of these pictures that the threshold calls foreign.

    Raises:
        ValueError: for fewer than 100 pictures, too few for a percentile in the tail.
    """
    if len(pooled) < 100:
        raise ValueError(f"{len(pooled)} pictures are too few to fit a domain: give at least 100")
    mean = pooled.mean(axis=0)
    scale = 1.0 / np.maximum(pooled.std(axis=0), 1e-6)
    fit = DomainFit(mean.astype(np.float32), scale.astype(np.float32), np.inf)
    threshold = float(np.quantile(fit.distance(pooled), 1.0 - false_alarms))
    return DomainFit(fit.mean, fit.scale, threshold)


def auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """Probability that a foreign picture scores higher than a known one; ties count half.

    Args:
        known: scores ``[N]``.
        foreign: scores ``[M]``.
    """
    below = np.searchsorted(np.sort(known), foreign, side="left")
    not_above = np.searchsorted(np.sort(known), foreign, side="right")
    return float((below + not_above).mean() / (2 * len(known)))
