"""Weights of 8 and 4 bits: how a matrix is rounded to the integers that the kernels multiply with.

At 8 bits a column has one scale, and its largest value becomes 127. At 4 bits a value is
``scale[n] * multiplier[block, n] * v``, with v in -7..7 and an integer multiplier 0..18 for every
block of 32 along K (see ``kernels/src/linear.h``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.kernels.layout import BLOCK, MOST_MULTIPLIER, MOST_VALUE

__all__ = ["Rounded", "calibrated4", "round4", "round8"]

Array = NDArray[Any]

_SHARES = (1.0, 0.9, 0.8, 0.7)  # of the largest value, that steps are tried for


@dataclass(frozen=True)
class Rounded:
    """A weight ``[K, N]`` in integers.

    Attributes:
        integers: ``[K, N]``: -127..127, or -7..7 beside multipliers.
        scale: float32 ``[N]``.
        multipliers: of 4-bit weights ``[K/32, N]``, 0..18; else None.
    """

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    multipliers: NDArray[np.uint8] | None = None

    def values(self) -> NDArray[np.float32]:
        """The weight that they stand for, ``[K, N]``."""
        whole = self.integers.astype(np.float32)
        if self.multipliers is not None:
            block = len(whole) // len(self.multipliers)
            whole *= np.repeat(self.multipliers, block, axis=0)
        return whole * self.scale


def round8(weight: Array) -> Rounded:
    """Every value to the nearest of 255 steps of its column."""
    scale = np.abs(weight).max(axis=0, initial=0) / np.float32(127)
    scale[scale == 0] = 1
    return Rounded(np.rint(weight / scale).astype(np.int8), scale.astype(np.float32))


# Four bits ------------------------------------------------------------------------------------


def round4(weight: Array, importance: Array | None = None) -> Rounded:
    """Every value to the nearest, with scales and multipliers of least squared error.

    Args:
        weight: float32 ``[K, N]``, K a multiple of 32.
        importance: of every k, ``[K]``: what a squared error there counts; None for all alike.
    """
    counts = np.ones(len(weight)) if importance is None else importance
    scale, multipliers = _steps(weight, np.asarray(counts, np.float32))
    step = np.repeat(multipliers, BLOCK, axis=0) * scale
    return Rounded(_nearest(weight, step), scale, multipliers)


def calibrated4(weight: Array, hessian: Array, *, damping: float = 0.01) -> Rounded:
    """To 4 bits so that the product's error is small, not the weight's.

    Values are rounded one k after the other, those that matter most first, and what a rounding
    did to the product is made up for by the values that are still to be rounded (GPTQ: Frantar et
    al., arXiv 2210.17323, with activation order and steps fixed before; here the steps are our
    integer multipliers). At last every column's scale is set to what is best for its integers.

    Args:
        weight: float32 ``[K, N]``, K a multiple of 32.
        hessian: ``[K, K]``, the mean of xᵀx over activations ``x``.
        damping: share of the diagonal's mean that is added to it.
    """
    hessian = np.array(hessian, np.float64)
    diagonal = np.diag_indices_from(hessian)
    typical = hessian[diagonal].mean() or 1.0
    # What was never seen is rounded to the nearest, as if it mattered a little.
    importance = np.maximum(hessian[diagonal], 1e-3 * typical)
    hessian[diagonal] = importance + damping * typical
    scale, multipliers = _steps(weight, importance.astype(np.float32))
    order = np.argsort(-importance, kind="stable")
    step = (np.repeat(multipliers, BLOCK, axis=0) * scale)[order]
    integers = np.empty(weight.shape, np.int8)
    integers[order] = _fed_back(weight[order].astype(np.float32), step, hessian[order][:, order])
    rounded = Rounded(integers, scale, multipliers)
    return replace(rounded, scale=_best_scale(weight, rounded, hessian))


def _steps(weight: Array, importance: Array) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Every column's scale ``[N]`` and multipliers ``[K/32, N]``, tried out."""
    blocks = weight.reshape(-1, BLOCK, weight.shape[1])
    counts = importance.reshape(-1, BLOCK, 1)
    most = np.abs(blocks).max(axis=1)  # [K/32, N]
    best: tuple[Array, Array, Array] | None = None
    for share in _SHARES:
        scale = share * most.max(axis=0) / np.float32(MOST_VALUE * MOST_MULTIPLIER)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        multipliers, errors = _multipliers(blocks, counts, most, scale)
        total = errors.sum(axis=0)
        if best is None:
            best = scale, multipliers, total
            continue
        better = total < best[2]
        best = (
            np.where(better, scale, best[0]),
            np.where(better, multipliers, best[1]),
            np.minimum(total, best[2]),
        )
    assert best is not None
    return best[0], best[1]


def _multipliers(
    blocks: Array, counts: Array, most: Array, scale: Array
) -> tuple[NDArray[np.uint8], Array]:
    """The best of the multipliers that cut off little, and their error, both ``[K/32, N]``."""
    whole = most / (MOST_VALUE * scale)
    chosen = np.ones(most.shape, np.uint8)
    least = np.full(most.shape, np.inf, np.float32)
    for share in _SHARES:
        multipliers = np.clip(np.rint(share * whole), 1, MOST_MULTIPLIER).astype(np.uint8)
        step = (multipliers * scale)[:, None]
        error = (counts * (_nearest(blocks, step) * step - blocks) ** 2).sum(axis=1)
        better = error < least
        chosen, least = np.where(better, multipliers, chosen), np.where(better, error, least)
    return chosen, least


def _nearest(weight: Array, step: Array) -> NDArray[np.int8]:
    return np.clip(np.rint(weight / step), -MOST_VALUE, MOST_VALUE).astype(np.int8)


def _fed_back(weight: Array, step: Array, hessian: Array) -> NDArray[np.int8]:
    """Integers ``[K, N]``; ``weight`` is used up."""
    # Row i of the upper factor says how the error at i spreads over all that follow.
    inverse = np.linalg.inv(hessian)
    factor = np.linalg.cholesky((inverse + inverse.T) / 2, upper=True).astype(np.float32)
    integers = np.empty(weight.shape, np.int8)
    for first in range(0, len(weight), BLOCK):
        last = first + BLOCK
        errors = np.empty((BLOCK, weight.shape[1]), np.float32)
        for i in range(first, last):
            integers[i] = _nearest(weight[i], step[i])
            errors[i - first] = (weight[i] - integers[i] * step[i]) / factor[i, i]
            weight[i + 1 : last] -= factor[i, i + 1 : last, None] * errors[i - first]
        weight[last:] -= factor[first:last, last:].T @ errors
    return integers


def _best_scale(weight: Array, rounded: Rounded, hessian: Array) -> NDArray[np.float32]:
    """Least squares, column by column, of the product's error over the scale."""
    whole = replace(rounded, scale=np.ones_like(rounded.scale)).values()
    seen = hessian.astype(np.float32) @ whole
    size = (whole * seen).sum(axis=0)
    wanted = (weight * seen).sum(axis=0)
    good = (size > 0) & (wanted > 0)
    return np.where(good, wanted / np.where(good, size, 1), rounded.scale).astype(np.float32)
