"""The decode loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from primelens.decoding.search import Search
from primelens.decoding.session import Session, Step

__all__ = ["decode"]


def decode(
    session: Session, search: Search, check: Callable[[], None] = lambda: None
) -> Iterator[Step | None]:
    """Decode until ``search`` is satisfied; yields after every step, so that a caller can stream or
    time.

    Args:
        session: executes the steps and owns the memory.
        search: decides.
        check: called before every step; whatever it raises ends the loop (cancellation).
    """
    session.reset()
    step: Step | None = search.begin()
    while step is not None:
        check()
        logits = session.run(step)
        step = search.advance(logits)
        yield step
