"""Continuous batching: a picture that is done makes room for the next one while others go on.

A batch that is decoded as one waits for its longest text. Here every picture of a batch has a slot:
the rows of one session that its sequences take, and a search of its own. When the search is
satisfied, the slot is given to the next picture at the next step, while the other slots go on.

Rows do not see one another, so a picture's results are those it has by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from primelens.decoding.search import Search
from primelens.decoding.session import Session, Step

__all__ = ["RenewableSession", "SlotCounts", "SlotPlan", "decode_slots"]

T = TypeVar("T")


class RenewableSession(Session, Protocol):
    """A session whose rows can begin anew one by one."""

    def renew(self, rows: slice) -> None:
        """Forget the sequences of these rows; the others stay."""


@dataclass
class SlotCounts:
    """How well a decode used its rows.

    Attributes:
        steps: runs of the decoder.
        rows: rows computed in them.
        used: rows among them that were fed a token.
    """

    steps: int = 0
    rows: int = 0
    used: int = 0

    @property
    def waste(self) -> float:
        """Share of the computed rows that were fed nothing."""
        return 1.0 - self.used / self.rows if self.rows else 0.0


@dataclass
class _Slot(Generic[T]):
    """What a slot's rows are busy with: the item, its search, and its next step (one token)."""

    item: T
    search: Search
    step: Step


@dataclass(frozen=True)
class SlotPlan:
    """How a session's rows are shared out: ``slots`` items at a time, ``rows`` rows each."""

    slots: int
    rows: int

    def part(self, slot: int) -> slice:
        """The rows of a slot."""
        return slice(slot * self.rows, (slot + 1) * self.rows)


def decode_slots(
    session: RenewableSession,
    items: Iterator[T],
    begin: Callable[[int, T], tuple[Search, Step | None]],
    plan: SlotPlan,
    *,
    check: Callable[[], None] = lambda: None,
    counts: SlotCounts | None = None,
) -> Iterator[tuple[T, Search]]:
    """Decode any number of items; yields each with its satisfied search, in the order they end.

    Args:
        session: of ``plan.slots · plan.rows`` rows.
        items: taken one by one, as slots become free.
        begin: told the slot that an item gets, whose rows are new; makes what the rows read
            (cross-attention keys and values) and answers with the item's search and its first step
            of one token: a longer prompt is fed by ``begin``. None for an item that is done.
        plan: how the rows are shared out.
        check: called before every step; whatever it raises ends the decode.
        counts: is told how many rows were computed, and how many of them were used.
    """
    session.reset()
    counts = counts if counts is not None else SlotCounts()
    batch: list[_Slot[T] | None] = [None] * plan.slots
    more = True
    while True:
        for number in range(plan.slots):
            while batch[number] is None and more:
                item = next(items, None)
                if item is None:
                    more = False
                    break
                session.renew(plan.part(number))
                search, step = begin(number, item)
                if step is None:
                    yield item, search
                else:
                    batch[number] = _Slot(item, search, step)
        if not any(batch):
            return
        check()
        joined = _joined(batch, plan)
        logits = session.run(joined)
        counts.steps += 1
        counts.rows += len(joined.lengths)
        counts.used += int(joined.lengths.sum())
        for number, slot in enumerate(batch):
            if slot is None:
                continue
            step = slot.search.advance(logits[plan.part(number)])
            if step is None:
                batch[number] = None
                yield slot.item, slot.search
            else:
                slot.step = step


def _joined(batch: list[_Slot[T] | None], plan: SlotPlan) -> Step:
    """All slots' steps as one; free slots are parked."""
    total = plan.slots * plan.rows
    tokens, lengths = np.zeros((total, 1), np.int64), np.zeros(total, np.int64)
    parents: NDArray[np.int64] | None = None
    for number, slot in enumerate(batch):
        if slot is None:
            continue
        part = plan.part(number)
        tokens[part], lengths[part] = slot.step.tokens, slot.step.lengths
        if slot.step.parents is not None:
            parents = np.arange(total) if parents is None else parents
            parents[part] = slot.step.parents + part.start
    return Step(tokens, lengths, parents)
