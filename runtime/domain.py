"""Notices a picture outside the domain that a model was made for.

A bundle may ship a detector: per-channel mean and inverse standard deviation of the tap averaged
    over its
positions, fitted on pictures of the domain. The score of a picture is the mean squared standardised
deviation, a diagonal Mahalanobis distance divided by the number of channels; about 1 inside the
domain. It costs microseconds because the tap is there already. How well the threshold separates is
measured when the model is built, and stands in its card.
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
        mean, inverse_std: ``[C]`` float32.
        threshold: scores above it are outside.
        text: what to tell the user then.
    """

    tap: str
    mean: NDArray[np.float32]
    inverse_std: NDArray[np.float32]
    threshold: float
    text: str

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
            mean, inverse = arrays.get(f"mean.{tap}"), arrays.get(f"inverse_std.{tap}")
            if mean is None or inverse is None:
                continue
            width = (spec.shape[-1],)
            finite = np.isfinite(mean).all() and np.isfinite(inverse).all()
            if mean.shape == inverse.shape == width and finite:
                text = domain.notice or f"outside this model's domain: {domain.description}"
                return DomainDetector(tap, mean, inverse, domain.threshold, text)
        raise BundleError(
            f"{path} holds no mean and inverse_std that fit a tap of the tower.",
            remedy="Fetch an unaltered copy of the bundle.",
        )

    def score(self, image: EncodedImage) -> float:
        """Mean squared standardised deviation of the picture's mean embedding."""
        pooled = image.taps[self.tap].mean(axis=0, dtype=np.float64)
        return float((((pooled - self.mean) * self.inverse_std) ** 2).mean())

    def notice(self, image: EncodedImage) -> str | None:
        """The notice for a picture outside the domain, else None."""
        return self.text if self.score(image) > self.threshold else None
