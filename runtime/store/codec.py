"""How values are stored: exactly (fp32), halved (fp16) or quartered (int8).

Everything here is a function of the values alone, so that a miss that goes through `Stored` before
it is used gives the very bits that a later hit will give.

* ``fp32`` keeps every bit.
* ``fp16`` rounds to the nearest half. An array with a value that a half cannot hold (above 65504)
  is stored as fp32 instead.
* ``int8`` keeps ``rint(x / s)`` and one float32 scale ``s = max|x| / 127`` per row (the last axis).
  A row too small for such a scale is stored as zeros, an array at float32's very limit as fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.store.key import StoredDtype

__all__ = ["Stored", "stored", "unchangeable"]

_LEVELS = 127
_BLOCK = 2**15  # values; larger arrays are allocated and cleared anew by the system each time
_HALF_OVERFLOW = 65520.0  # rounds to infinity
_SCALED_OVERFLOW = 3.4e38  # 127 times its scale may round to infinity
_NUMPY = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("i1")}


@dataclass(frozen=True)
class Stored:
    """Values as they lie in a file.

    Attributes:
        values: ``[..., C]`` in float32, float16 or int8.
        scales: ``[...]`` float32, one per row, for int8 only.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name → array, in the order of files: after the scales the values are still aligned."""
        return ({} if self.scales is None else {"scales": self.scales}) | {"values": self.values}

    @property
    def contiguous(self) -> dict[str, NDArray[Any]]:
        """`arrays`, each C-contiguous."""
        if self.scales is None and self.values.flags.c_contiguous:
            return {"values": self.values}
        return {name: np.asarray(array, order="C") for name, array in self.arrays.items()}

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]]) -> Stored:
        """The inverse of `arrays`; raises ValueError where the arrays do not fit together."""
        values, scales = arrays.get("values"), arrays.get("scales")
        if values is None or values.dtype not in _NUMPY.values():
            raise ValueError("no values, or values of an unknown dtype")
        quantised = values.dtype == _NUMPY["int8"]
        if quantised != (scales is not None) or set(arrays) - {"values", "scales"}:
            raise ValueError("scales and int8 values go together, and nothing else")
        if scales is not None and (
            scales.dtype != _NUMPY["fp32"] or scales.shape != values.shape[:-1]
        ):
            raise ValueError(f"scales {scales.shape} do not fit values {values.shape}")
        return Stored(values, scales)

    def restore(self) -> NDArray[np.float32]:
        """``[..., C]`` float32, read-only; shares memory with fp32 values."""
        restored: NDArray[np.float32]
        if self.scales is not None:
            restored = np.multiply(self.values, self.scales[..., None], dtype=np.float32)
        elif self.values.dtype == np.float16:
            restored = _widened(self.values)
        else:
            restored = self.values.astype(np.float32, copy=False)
        restored.setflags(write=False)
        return restored

    def error(self, values: NDArray[np.float32]) -> tuple[float, float]:
        """Against what was stored: the largest difference, and the RMS difference over the RMS."""
        if self.values.dtype == np.float32 or not values.size:
            return 0.0, 0.0
        largest, squares, size = 0.0, 0.0, 0.0
        width = values.shape[-1] or 1
        rows = values.reshape(-1, width)
        step = max(1, _BLOCK // width)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            difference = self._rows(start, start + step, width) - block
            largest = max(largest, float(np.abs(difference).max()))
            squares += float(np.einsum("ij,ij->", difference, difference, dtype=np.float64))
            size += float(np.einsum("ij,ij->", block, block, dtype=np.float64))
        return largest, (squares / size) ** 0.5 if size else 0.0

    def _rows(self, start: int, stop: int, width: int) -> NDArray[np.float32]:
        scales = None if self.scales is None else self.scales.reshape(-1)[start:stop]
        return Stored(self.values.reshape(-1, width)[start:stop], scales).restore()


def stored(values: NDArray[np.float32], dtype: StoredDtype) -> Stored:
    """Convert values for storage.

    Args:
        values: ``[..., C]`` float32, at least one axis, all finite.
        dtype: what to store them as.

    Raises:
        ValueError: the values are not finite, not float32, or a scalar.
    """
    if values.dtype != np.float32 or values.ndim < 1:
        raise ValueError(f"values are {values.dtype} {list(values.shape)}, not float32 [..., C]")
    # Both are NaN if there is one.
    peak = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if not math.isfinite(peak):
        raise ValueError("values are not finite")
    if dtype == "int8" and peak < _SCALED_OVERFLOW:
        return _quantised(values)
    if dtype == "fp16" and peak < _HALF_OVERFLOW:
        return Stored(values.astype(np.float16))
    return Stored(unchangeable(values))


def unchangeable(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values in memory that nobody writes to: a copy, unless they lie in such memory."""
    flags = values.flags
    if flags.owndata and flags.c_contiguous and not flags.writeable:
        return values
    copy = np.array(values, np.float32, order="C")
    copy.setflags(write=False)
    return copy


def _quantised(values: NDArray[np.float32]) -> Stored:
    largest = np.abs(values).max(axis=-1, initial=0.0, keepdims=True)
    scales = largest / np.float32(_LEVELS)
    # Below the smallest normal float the division would lose the precision that int8 promises.
    scales[scales < np.finfo(np.float32).tiny] = 0.0
    divisors = np.where(scales == 0.0, np.float32(np.inf), scales)
    levels = np.rint(values / divisors).astype(np.int8)
    return Stored(levels, scales.reshape(values.shape[:-1]))


def _widened(half: NDArray[np.float16]) -> NDArray[np.float32]:
    """Finite halves as floats: ``astype(float32)`` in a sixth of the time, bit by bit the same.

    A normal half becomes a float by shifting its bits and moving the exponent's bias. The others
    (zeros and subnormals) are few as a rule, and are put right one by one.
    """
    flat = np.ascontiguousarray(half).reshape(-1)
    bits = flat.view(np.int16)
    floats = np.empty(flat.size, np.float32)
    wide = floats.view(np.int32)
    for start in range(0, flat.size, _BLOCK):  # in the cache, and without large temporary arrays
        source, target = bits[start : start + _BLOCK], wide[start : start + _BLOCK]
        target[:] = source  # extends the sign over the exponent
        np.left_shift(target, 13, out=target)
        np.bitwise_and(target, np.int32(-0x70002000), out=target)
        np.add(target, np.int32(112 << 23), out=target)
        special = np.flatnonzero((source & 0x7C00) == 0) + start
        floats[special] = flat[special].astype(np.float32)
    return floats.reshape(half.shape)
