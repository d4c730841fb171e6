"""Notices a picture outside the domain that a model was made for.

A bundle may ship a detector: a Gaussian with a diagonal covariance, fitted on pictures of the
    domain,
around the tap's mean and standard deviation over its positions. The score of a picture is the root
mean
square of its standardised deviations: near 1 inside the domain. It costs microseconds because the
    tap is
there already. How well the threshold separates is measured when the model is built, and stands in
its card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from primelens.bundle import Bundle
from primelens.errors import BundleError
from primelens.results import EncodedImage

__all__ = ["DomainDetector"]


@dataclass(frozen=True)
class DomainDetector:
    """A fitted detector.

    Attributes:
        tap: the tap that it reads, ``[L, C]``.
        mean, scale: ``[2 C]`` float32: of the pooled tap, scale being one over the deviation.
        threshold: scores above it are outside.
    """

    tap: str
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    threshold: float

    @staticmethod
    def of(bundle: Bundle) -> DomainDetector | None:
        """The bundle's detector, or None where it has none; raises `BundleError` for a bad one."""
        domain = bundle.manifest.domain
        if domain.detector is None or domain.threshold is None:
            return None
        path = bundle.path(domain.detector)
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{path} cannot be read: {error}.") from error
        for tap, spec in bundle.manifest.tower.taps.items():
            mean, scale = arrays.get(f"mean.{tap}"), arrays.get(f"scale.{tap}")
            if mean is None or scale is None:
                continue
            width = (2 * spec.shape[-1],)
            finite = np.isfinite(mean).all() and np.isfinite(scale).all()
            if mean.shape == scale.shape == width and finite:
                return DomainDetector(tap, mean, scale, domain.threshold)
        raise BundleError(
            f"{path} holds no mean and scale that fit a tap of the tower.",
            remedy="Fetch an unaltered copy of the bundle.",
        )

    def score(self, image: EncodedImage) -> float:
        """Root mean square of the picture's standardised pooled tap."""
        states = image.taps[self.tap]
        pooled = np.concatenate([states.mean(axis=0), states.std(axis=0)])
        return float(np.sqrt(np.mean(np.square((pooled - self.mean) * self.scale))))

    def is_outside(self, image: EncodedImage) -> bool:
        """Whether the picture's score exceeds the threshold."""
        return self.score(image) > self.threshold
