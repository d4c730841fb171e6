"""Why something was not found: looked for when somebody asks, and for many misses at once.

That a file is absent is known at once; what the index remembers of it takes longer than all the
rest of a miss. So misses wait here for their reasons until one of them is asked for, the counters
are, or the index is about to be told what came since: reasons are those of the time of the miss.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from primelens.store.index import Index
from primelens.store.key import Key
from primelens.store.ledger import Ledger
from primelens.store.outcome import Miss, Reason
from primelens.store.tally import Tally

__all__ = ["Misses"]

logger = logging.getLogger("primelens.store")

_MOST = 512  # that wait

Given = Callable[[], Iterable[tuple[Key, int]]]


class Misses:
    """Misses without a reason; safe for threads.

    Args:
        index: remembers what was kept.
        ledger: its lock is held while reasons are looked for.
        tally: where they are counted.
        given: keys that this process keeps and the index does not know, with the time (ns) when
            each was given to be kept.
        writable: whether the index may be told that a file is lost.
    """

    def __init__(
        self, index: Index, ledger: Ledger, tally: Tally, given: Given, *, writable: bool
    ) -> None:
        self._index, self._ledger, self._tally = index, ledger, tally
        self._given, self._writable = given, writable
        self._waiting: deque[tuple[Miss, Key, int]] = deque()

    def add(self, key: Key) -> Miss:
        """A miss of a key that has no file now."""
        miss = Miss.unexplained(self.explain)
        self._waiting.append((miss, key, time.time_ns()))
        if len(self._waiting) >= _MOST:
            self.explain()
        return miss

    def explain(self) -> None:
        """Give all of them their reasons."""
        with self._ledger.lock:  # another thread may be about to give them
            waiting = []
            while self._waiting:
                waiting.append(self._waiting.popleft())
            if waiting:
                self._explain(waiting)

    def _explain(self, waiting: Sequence[tuple[Miss, Key, int]]) -> None:
        fates: Mapping[str, str] = {}
        known: dict[str, list[tuple[Key, int]]] = {}
        lost = []
        try:
            fates, rows = self._index.histories([key for _, key, _ in waiting])
            for key, since in [*((row.key, row.used) for row in rows), *self._given()]:
                known.setdefault(key.source, []).append((key, since))
        except (OSError, sqlite3.Error) as error:
            logger.debug("the index cannot say why something is missing: %s", error)
        reasons: Counter[Reason] = Counter()
        for miss, key, at in waiting:
            there, others = _of_its_time(key, at, known.get(key.source, ()))
            if there:
                lost.append(key.digest)
            reason, parts = _reason(key, fates.get(key.digest), others, there=there)
            miss.explain(reason, parts)
            reasons[reason] += 1
        for reason, count in reasons.items():
            self._tally.count(f"miss {reason}", count)
        if self._writable:
            self._forget(lost)

    def _forget(self, lost: Sequence[str]) -> None:
        try:
            for digest in lost:
                self._index.forget_lost(digest)
        except (OSError, sqlite3.Error) as error:
            self._tally.notice(error)


def _of_its_time(key: Key, at: int, known: Iterable[tuple[Key, int]]) -> tuple[bool, list[Key]]:
    """Whether a key was known when it was missed, and its picture's other keys."""
    there, others = False, []
    for other, since in known:
        if other.digest != key.digest:
            others.append(other)
        elif since <= at:
            there = True
    return there, others


def _reason(
    key: Key, fate: str | None, others: Sequence[Key], *, there: bool
) -> tuple[Reason, tuple[str, ...]]:
    if there:  # and yet its file was not
        return "evicted", ()
    if fate is not None:
        return ("corrupt" if fate == "corrupt" else "evicted"), ()
    differing = [key.whole.differing(other.whole) for other in others]
    return ("differs", min(differing, key=len)) if differing else ("new", ())
