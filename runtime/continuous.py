"""Any number of encoded pictures through one head, by continuous batching, results in order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from primelens.decoding.search import Search
from primelens.decoding.session import DecoderSession, Step
from primelens.decoding.slots import SlotCounts, SlotPlan, decode_slots
from primelens.head import BoundConnector, Progress, TextHead, Workspace, asked_of, cancel_check
from primelens.options import CaptionOptions
from primelens.prompts import with_prompts_at
from primelens.results import EncodedImage

__all__ = ["write_each"]


@dataclass
class _Item:
    """A picture on its way.

    Attributes:
        number: its place among the pictures.
        image: the picture.
        options: how it is decoded, with its own prompt.
        connector: seconds that the connector took.
        begun: when its first step began.
    """

    number: int
    image: EncodedImage
    options: CaptionOptions
    connector: float = 0.0
    begun: float = 0.0


def write_each(
    head: TextHead,
    images: Iterable[EncodedImage],
    options: CaptionOptions,
    *,
    slots: int,
    counts: SlotCounts | None = None,
    places: Iterable[int] | None = None,
) -> Iterator[tuple[EncodedImage, Progress]]:
    """What the head writes about each picture, in the pictures' order.

    Pictures are taken as slots become free; results wait for those before them. Of a picture's
    times, ``step`` is what passed from its first step to its last, the other slots' work included.

    Args:
        head: one whose decoder attends to the picture by cross-attention.
        images: encoded pictures.
        options: how to decode.
        slots: pictures decoded at a time.
        counts: is told how well the rows were used.
        places: where each picture's prompt stands in ``options.prompt``; looked at after the
            picture was taken. None for one after the other.
    """
    rows = head.effective(options).rows_per_picture
    workspace = head._take((slots, slots * rows), head._room(_longest(head, options)))
    plan = SlotPlan(slots, rows)
    taken = zip(images, itertools.count() if places is None else places, strict=False)
    items = (
        _Item(number, image, with_prompts_at(options, [place]))
        for number, (image, place) in enumerate(taken)
    )
    try:
        slotted = _Slots(head, workspace, plan, options)
        check = cancel_check(options)
        found = decode_slots(
            slotted.session, items, slotted.begin, plan, check=check, counts=counts
        )
        yield from _in_order(found)
    finally:
        head._give_back(workspace)


class _Slots:
    """The rows that pictures take in turn, each slot with a connector of its own.

    Attributes:
        session: of all rows.
    """

    def __init__(
        self, head: TextHead, workspace: Workspace, plan: SlotPlan, options: CaptionOptions
    ) -> None:
        assert isinstance(workspace.session, DecoderSession)
        self._head, self._plan, self._options = head, plan, options
        self._wanted = head.effective(options)
        self.session = workspace.session
        self._connectors = _per_slot(head, workspace, plan.slots)
        # Sessions of one slot's rows, for prompts; a slot that is alone has its own already.
        self._alone = {0: self.session} if plan.slots == 1 else {}

    def begin(self, slot: int, item: _Item) -> tuple[Search, Step | None]:
        """Connect the picture, and feed its prompt by itself, as ever."""
        head, bound = self._head, self._connectors[slot]
        item.connector = head._connect(bound, [item.image])
        item.begun = time.perf_counter()
        asked = asked_of([item.image], None, item.options)
        search, _ = head._search(self._wanted, asked, item.options)
        step: Step | None = search.begin()
        if step is None or step.tokens.shape[1] == 1:
            return search, step
        if slot not in self._alone:
            self._alone[slot] = self.session.beside(self._plan.rows, bound.outputs)
        single = self._alone[slot]
        single.reset()
        step = search.advance(single.run(step))
        if single is not self.session:
            self.session.adopt(self._plan.part(slot), single)
        return search, step


def _in_order(
    found: Iterable[tuple[_Item, Search]],
) -> Iterator[tuple[EncodedImage, Progress]]:
    """Results in the pictures' order: each waits for those before it."""
    waiting: dict[int, tuple[EncodedImage, Progress]] = {}
    following = 0
    for item, search in found:
        step = time.perf_counter() - item.begun
        waiting[item.number] = item.image, Progress(search.results, item.connector, 0.0, step)
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _per_slot(head: TextHead, workspace: Workspace, slots: int) -> list[BoundConnector]:
    """The connector for each slot; it writes where the slot's rows read."""
    whole = workspace.connector
    assert whole is not None
    if slots == 1:
        return [whole]
    return [
        head._bind_connector(1, {name: values[n : n + 1] for name, values in whole.outputs.items()})
        for n in range(slots)
    ]


def _longest(head: TextHead, options: CaptionOptions) -> int:
    """The most tokens that a sequence can have, prompt included."""
    given = options.prompt
    several = [given] if given is None or isinstance(given, str) else list(dict.fromkeys(given))
    prompts = [head.prompt(prompt) for prompt in several or [None]]
    return max(len(p) + head.limits([p], options).max_new_tokens[0] for p in prompts)
