"""The kernels in NumPy, bit for bit: what the compiled ones are tested against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from primelens.kernels.activations import EXPONENTIAL, activate

__all__ = ["cross_attention", "linear", "round_rows", "top_logits"]

Array = NDArray[Any]
_CHUNK = 512  # columns whose exponentials are summed together
_PADDING = np.float32(-3.402823466e38)
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


def linear(
    x: Array,
    weight: Array,
    scale: Array,
    bias: Array | None = None,
    activation: str = "none",
) -> NDArray[np.float32]:
    """Rows times integer weights, as `src/linear.h` defines it.

    Args:
        x: float32 ``[M, K]``.
        weight: integers ``[K, N]``.
        scale: float32 ``[N]``.
        bias: float32 ``[N]``.
        activation: one of `primelens.kernels.activations.ACTIVATIONS`.
    """
    a, row_scale = round_rows(x)
    total = a.astype(np.int64) @ weight.astype(np.int64)
    y = total.astype(np.int32).astype(np.float32) * row_scale[:, None] * scale
    return activate(y if bias is None else y + bias, activation)


def top_logits(
    logits: Array, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """What ``TopLogits`` says about logits, which it never stores (`src/top.h`).

    Args:
        logits: float32 ``[M, N]``, from `linear`.
        count: k, at most N.

    Returns:
        Columns ``[M, k]``, best first, the lower of equal ones first; their logits ``[M, k]``; and
        ``log(sum(exp(logits)))`` over all columns ``[M]``, NaN where one is not finite.
    """
    keys = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    ids = np.argsort(-keys, axis=1, kind="stable")[:, :count]
    return ids, np.take_along_axis(logits, ids, axis=1), _log_sum_exp(logits)


def cross_attention(
    query: Array, key: Array, value: Array, scale: float, lengths: Array | None = None
) -> NDArray[np.float32]:
    """Attention of every row to its picture, as `src/attention.h` defines it.

    Args:
        query: float32 ``[I, R, H * D]``.
        key: float32 ``[I, H, L, D]``.
        value: float32 ``[I, H, L, D]``.
        scale: of a score.
        lengths: int32 ``[I]``, how many of the L count; None for all.

    Returns:
        float32 ``[I, R, H * D]``.
    """
    images, heads, places, width = key.shape
    rows = query.shape[1]
    split = query.reshape(images, rows, heads, width).transpose(0, 2, 1, 3).astype(np.float64)
    found = np.zeros((images, heads, rows, width), np.float32)
    for image in range(images):
        count = places if lengths is None else int(np.clip(lengths[image], 0, places))
        if not count:
            continue
        keys, values = (a[image, :, :count].astype(np.float64) for a in (key, value))
        sums = _in_lanes(split[image, :, :, None] * keys[:, None])  # [H, R, count]
        scores = (sums * np.float64(np.float32(scale))).astype(np.float32)
        apart = scores - np.fmax.reduce(scores, axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            shares = (EXPONENTIAL(apart) + (apart - apart)).astype(np.float64)
        mixed = np.zeros((heads, rows, width))
        for place in range(count):
            mixed = mixed + shares[..., place, None] * values[:, None, place]
        found[image] = (mixed / _in_lanes(shares)[..., None]).astype(np.float32)
    return found.transpose(0, 2, 1, 3).reshape(images, rows, heads * width)


def _in_lanes(terms: Array) -> NDArray[np.float64]:
    """float64 ``[..., N]`` → their sums, in 8 lanes that are added in a fixed order."""
    padding = [(0, 0)] * (terms.ndim - 1) + [(0, -terms.shape[-1] % 8)]
    parts = np.pad(terms, padding).reshape(*terms.shape[:-1], -1, 8)
    lanes = np.zeros((*terms.shape[:-1], 8))
    for step in range(parts.shape[-2]):
        lanes = lanes + parts[..., step, :]
    halves = lanes[..., :4] + lanes[..., 4:]
    return np.asarray((halves[..., 0] + halves[..., 1]) + (halves[..., 2] + halves[..., 3]))


def _log_sum_exp(logits: Array) -> NDArray[np.float32]:
    rows, width = logits.shape
    padding = ((0, 0), (0, -width % _CHUNK))
    parts = np.pad(logits, padding, constant_values=_PADDING).reshape(rows, -1, _CHUNK)
    most = np.fmax(np.fmax.reduce(parts, axis=2), _PADDING)
    with np.errstate(invalid="ignore", over="ignore"):
        terms = EXPONENTIAL(parts - most[..., None]) + (parts - parts)
    lanes = np.zeros((*most.shape, 16), np.float32)
    for first in range(0, _CHUNK, 16):
        lanes = lanes + terms[..., first : first + 16]
    sums = np.zeros(most.shape)
    for lane in range(16):
        sums = sums + lanes[..., lane]
    largest = most.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = sums.astype(np.float32).astype(np.float64) * EXPONENTIAL(most - largest)
    total = np.zeros(rows)
    for chunk in range(most.shape[1]):
        total = total + shares[:, chunk]
    return np.asarray(largest[:, 0].astype(np.float64) + np.log(total), np.float32)
