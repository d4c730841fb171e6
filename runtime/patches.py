"""Pictures of any shape as patches within a budget (NaFlex, SigLIP 2).

A picture keeps its aspect ratio: it is scaled until its patches just fit the budget, and every side
is rounded up to whole patches, as transformers' ``Siglip2ImageProcessorPil`` does it.

*Packed*, a picture is one array ``[1 + N, P·P·3]`` float32, whatever its shape: row 0 says how many
rows and columns of patches there are and is zero behind these two numbers; then come the patches,
row by row, each with its pixels row by row and the colours last; then zeros up to the budget N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["FitPatches", "packed", "patches_of"]

_PIXEL_CAP = 8192**2
# Between which scales it is searched, and how closely.
_CLOSE = 1e-5
_LEAST, _MOST = _CLOSE / 10, 100.0


@dataclass(frozen=True)
class FitPatches:
    """To whole patches of ``patch`` by ``patch`` pixels, at most ``most`` of them."""

    patch: int
    most: int
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    op: Literal["fit_patches"] = "fit_patches"

    def __post_init__(self) -> None:
        if self.patch < 1 or self.most < 1 or self.patch**2 * self.most > _PIXEL_CAP:
            raise ValueError(
                f"patch is {self.patch} and most is {self.most}; both must be at least 1, and all "
                f"patches together may have {_PIXEL_CAP} pixels"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Of a packed picture."""
        return 1 + self.most, 3 * self.patch**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that a picture of so many pixels is scaled to."""

        def whole(side: int, scale: float) -> int:
            return max(1, math.ceil(side * scale / self.patch))

        low, high = _LEAST, _MOST
        while high - low >= _CLOSE:
            middle = (low + high) / 2
            if whole(height, middle) * whole(width, middle) <= self.most:
                low = middle
            else:
                high = middle
        return whole(height, low), whole(width, low)

    def __call__(self, image: Image.Image) -> Image.Image:
        rows, columns = self.grid(image.height, image.width)
        size = (columns * self.patch, rows * self.patch)
        return image.resize(size, Image.Resampling[self.resample.upper()])


def patches_of(pixels: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """``[3, rows · P, columns · P]`` → ``[rows · columns, P·P·3]``."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    tiles = pixels.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(tiles).reshape(rows * columns, -1)


def packed(patches: NDArray[np.float32], rows: int, columns: int, most: int) -> NDArray[np.float32]:
    """One picture, ``[1 + most, P·P·3]`` float32.

    Args:
        patches: ``[n, P·P·3]``; what stands behind ``rows · columns`` is left out.
        rows, columns: of patches.
        most: the budget.
    """
    count = rows * columns
    found = np.zeros((1 + most, patches.shape[1]), np.float32)
    found[0, :2] = rows, columns
    found[1 : 1 + count] = patches[:count]
    return found
