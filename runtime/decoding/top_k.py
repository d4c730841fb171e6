"""The k largest of many scores, in the order in which torch would give them.

torch does not define the order of equal scores. On the CPU it hands pairs of score and index to the
C++ library's ``partial_sort`` (few of many) or ``nth_element`` and ``sort``. The first is followed
here, heap operation by heap operation as libstdc++ performs them, because it decides between equal
candidates of a beam search; it runs only where equal scores are found. Where there are none, every
way gives the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["top_k"]

_GROUPS = 64  # per wanted score
_BLOCK = 4096


def top_k(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest of ``[N]`` scores, largest first.

    Equal scores: as ``torch.topk`` on the CPU (Linux, libstdc++) orders them where
    ``64 * count <= N``, else the lowest index first. Of minus infinities, which nobody wants, the
    lowest index first in any case. No score may be NaN.
    """
    count = min(count, len(scores))
    bound = _bound(scores, count)
    candidates = np.flatnonzero(scores >= bound if bound > -np.inf else scores > -np.inf)
    if len(candidates) < count:
        rest = np.flatnonzero(scores == -np.inf)[: count - len(candidates)]
        candidates = np.concatenate((candidates, rest))
    values = scores[candidates]
    order = np.argsort(-values, kind="stable")[: count + 1]
    values = values[order]
    tied = (values[1:] == values[:-1]) & (values[1:] > -np.inf)
    if tied.any() and count * 64 <= len(scores):
        return _partial_sort(scores, count)
    result: NDArray[np.int64] = candidates[order[:count]]
    return result


def _bound(scores: NDArray[np.float32], count: int) -> np.float32:
    """A bound that at least ``count`` scores reach, and few more: the ``count``-th largest of the
    largest of each group of scores (in two passes at memory speed, where a partition takes ten).
    """
    width = len(scores) // _GROUPS // max(count, 1)
    if width < 2:
        return np.float32(np.partition(scores, len(scores) - count)[len(scores) - count])
    groups = len(scores) // width
    largest = scores[: groups * width].reshape(width, groups).max(axis=0)
    return np.float32(np.partition(largest, groups - count)[groups - count])


def _partial_sort(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """libstdc++'s ``partial_sort`` with ``>``: a heap of the first ``count``, its root the smallest
    of them; every later score that exceeds the root replaces it; then the heap is sorted.
    """
    heap = list(range(count))
    for root in range((count - 2) // 2, -1, -1):
        _sink(heap, scores, root, count, heap[root])
    for start in range(count, len(scores), _BLOCK):
        # The root only grows, so what does not exceed it now never enters.
        block = np.flatnonzero(scores[start : start + _BLOCK] > scores[heap[0]]) + start
        for index in block.tolist():
            if scores[index] > scores[heap[0]]:
                _sink(heap, scores, 0, count, index)
    for last in range(count - 1, 0, -1):
        moved = heap[last]
        heap[last] = heap[0]
        _sink(heap, scores, 0, last, moved)
    return np.array(heap, np.int64)


def _sink(heap: list[int], value: NDArray[np.float32], hole: int, size: int, item: int) -> None:
    """Move the hole down to a leaf along the smaller children, then ``item`` up from there."""
    top, child = hole, hole
    while child < (size - 1) // 2:
        child = 2 * (child + 1)
        if value[heap[child]] > value[heap[child - 1]]:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if size % 2 == 0 and child == (size - 2) // 2:
        child = 2 * (child + 1)
        heap[hole] = heap[child - 1]
        hole = child - 1
    parent = (hole - 1) // 2
    while hole > top and value[heap[parent]] > value[item]:
        heap[hole] = heap[parent]
        hole = parent
        parent = (hole - 1) // 2
    heap[hole] = item
