"""The kernels in NumPy, bit for bit: what the compiled ones are tested against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["linear", "round_rows"]

Array = NDArray[Any]
_LEAST = np.float32(1e-30)  # a row smaller than this is rounded to zeros


def round_rows(x: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """float32 ``[M, K]`` → integers -127..127 ``[M, K]`` and one scale per row ``[M]``.

    A row that holds a value that is not finite becomes zeros with a scale of NaN.
    """
    most = np.maximum(np.abs(x).max(axis=1, initial=0), _LEAST).astype(np.float32)
    good = np.isfinite(most)
    inverse = np.float32(127) / np.where(good, most, 1).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.rint(np.where(good[:, None], x, 0) * inverse[:, None])
    scales = np.where(good, most / np.float32(127), np.float32(np.nan))
    return rounded.astype(np.int8), scales.astype(np.float32)


def linear(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> NDArray[np.float32]:
    """Rows times integer weights, as `src/linear.h` defines it.

    Args:
        x: float32 ``[M, K]``.
        weight: integers ``[K, N]``.
        scale: float32 ``[N]``.
        bias: float32 ``[N]``.
    """
    a, row_scale = round_rows(x)
    total = a.astype(np.int64) @ weight.astype(np.int64)
    y = total.astype(np.int32).astype(np.float32) * row_scale[:, None] * scale
    return y if bias is None else y + bias
