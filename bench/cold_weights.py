"""Timing an operator as a decode step finds it: with weights that come from memory.

An operator that is called again and again on one matrix finds it in the cache and looks several
times faster than it will be in a decoder, where tens of megabytes of other weights lie between two
uses. So every call here works on weights of its own: as many copies as it takes to exceed the
last-level cache several times over, visited in turn. What a pass did not leave in the cache, the
next one cannot find there.

::

    copies = copies_for(weights.nbytes)
    calls = {"engine": [bind(weights_of(i)) for i in range(copies)], "kernel": [...]}
    seconds = time_in_turns(calls, blocks=10)       # name → one time per call and block
    compare_blocks(seconds["engine"], seconds["kernel"], paired=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from primelens.bench.environment import last_level_cache

__all__ = ["copies_for", "time_in_turns"]

_CACHE_FACTOR = 4  # a pass reads so many times the last-level cache
_UNKNOWN_CACHE = 64 * 2**20  # bytes, where the system does not tell
_LEAST_COPIES = 3


def copies_for(nbytes: int, *, cache: int | None = None) -> int:
    """How many different weights of ``nbytes`` each a pass has to visit.

    Args:
        nbytes: bytes that one call reads.
        cache: bytes of the last-level cache; None asks the machine.

    Raises:
        ValueError: a call reads nothing.
    """
    if nbytes < 1:
        raise ValueError("an operator without weights cannot find them in a cache")
    size = cache if cache is not None else last_level_cache() or _UNKNOWN_CACHE
    return max(_LEAST_COPIES, -(-_CACHE_FACTOR * size // nbytes))


def time_in_turns(
    calls: Mapping[str, Sequence[Callable[[], object]]],
    *,
    blocks: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[list[float]]]:
    """Time every call of every way, block by block, the ways taking turns (A B A B …).

    Args:
        calls: way → its calls, one per copy of the weights; a block makes each of them once.
        blocks: that count; one more at the start warms up.
        clock: seconds.

    Returns:
        Way → one list of seconds per block, one entry per call.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    for block in range(-1, blocks):
        for name, ways in calls.items():
            seconds = []
            for call in ways:
                start = clock()
                call()
                seconds.append(clock() - start)
            if block >= 0:
                found[name].append(seconds)
    return found
