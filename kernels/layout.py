"""How quantised weights lie in memory for the kernels; `src/linear.h` describes both layouts.

Integer weights are arrays ``[K, N]`` here, as they are multiplied with: ``rows [M, K] @ [K, N]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "MOST_MULTIPLIER",
    "MOST_VALUE",
    "PANEL",
    "pack4",
    "pack8",
    "unpack4",
    "unpack8",
]

PANEL = 16  # columns that lie together
BLOCK = 32  # k that share a multiplier, at 4 bits
MOST_VALUE = 7  # of a 4-bit value
MOST_MULTIPLIER = 18  # 7 * 18 = 126 still is an 8-bit weight

Array = NDArray[Any]


def pack8(weight: Array) -> NDArray[np.uint8]:
    """Integers -127..127 ``[K, N]`` → ``[panels, K/4, 16, 4]``, each plus 128.

    Raises:
        ValueError: K is no multiple of 4, or a value does not fit.
    """
    inner, _ = weight.shape
    if inner % 4 or np.abs(weight).max(initial=0) > 127:
        raise ValueError("8-bit weights have K a multiple of 4 and values in -127..127")
    shifted = (_padded(weight).astype(np.int16) + 128).astype(np.uint8)
    parts = shifted.reshape(inner // 4, 4, -1, PANEL)
    return np.ascontiguousarray(parts.transpose(2, 0, 3, 1))


def unpack8(packed: NDArray[np.uint8], width: int) -> NDArray[np.int32]:
    """The inverse of `pack8`: ``[K, width]``."""
    panels, groups, _, _ = packed.shape
    whole = packed.transpose(1, 3, 0, 2).reshape(groups * 4, panels * PANEL)
    return whole[:, :width].astype(np.int32) - 128


def pack4(values: Array, multipliers: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Values -7..7 ``[K, N]`` and multipliers 0..18 ``[K/32, N]`` → the two packed arrays.

    Returns:
        ``[panels, K/32, 4, 64]`` and ``[panels, K/32, 16]``.

    Raises:
        ValueError: K is no multiple of 32, or something does not fit.
    """
    inner, width = values.shape
    fits = np.abs(values).max(initial=0) <= MOST_VALUE
    fits &= multipliers.min(initial=0) >= 0 and multipliers.max(initial=0) <= MOST_MULTIPLIER
    if inner % BLOCK or multipliers.shape != (inner // BLOCK, width) or not fits:
        raise ValueError("4-bit weights have K a multiple of 32, values -7..7, multipliers 0..18")
    shifted = (_padded(values).astype(np.int16) + 8).astype(np.uint8)
    # [block, half of 4 groups, group, k of the group, panel, column]
    parts = shifted.reshape(inner // BLOCK, 2, 4, 4, -1, PANEL).transpose(4, 0, 1, 2, 5, 3)
    packed = (parts[:, :, 0] | parts[:, :, 1] << 4).reshape(-1, inner // BLOCK, 4, 64)
    scales = _padded(multipliers).astype(np.uint8).reshape(inner // BLOCK, -1, PANEL)
    return packed.astype(np.uint8, copy=False), np.ascontiguousarray(scales.transpose(1, 0, 2))


def unpack4(
    packed: NDArray[np.uint8], multipliers: NDArray[np.uint8], width: int
) -> NDArray[np.int32]:
    """The integer weights ``[K, width]`` of what `pack4` returned: values times multipliers."""
    panels, blocks = packed.shape[:2]
    parts = packed.reshape(panels, blocks, 1, 4, PANEL, 4)
    both = np.concatenate([parts & 15, parts >> 4], axis=2).astype(np.int32) - 8
    values = both * multipliers[:, :, None, None, :, None]
    whole = values.transpose(1, 2, 3, 5, 0, 4).reshape(blocks * BLOCK, panels * PANEL)
    return whole[:, :width]


def _padded(columns: Array) -> Array:
    return np.pad(columns, ((0, 0), (0, -columns.shape[1] % PANEL)))
