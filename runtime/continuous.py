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
    wanted = head.effective(options)
    rows = wanted.rows_per_picture
    need = _longest(head, options)
    workspace = head._take((slots, slots * rows), head._room(need))
    session, plan = workspace.session, SlotPlan(slots, rows)
    assert isinstance(session, DecoderSession)
    connectors = _per_slot(head, workspace, slots)
    alone: dict[int, DecoderSession] = {0: session} if slots == 1 else {}

    def begin(slot: int, item: _Item) -> tuple[Search, Step | None]:
        bound = connectors[slot]
        item.connector = head._connect(bound, [item.image])
        item.begun = time.perf_counter()
        search, _ = head._search(wanted, asked_of([item.image], None, item.options), item.options)
        step: Step | None = search.begin()
        if step is not None and step.tokens.shape[1] > 1:  # the prompt, by itself, as ever
            if slot not in alone:
                alone[slot] = session.beside(rows, bound.outputs)
            single = alone[slot]
            single.reset()
            step = search.advance(single.run(step))
            if single is not session:
                session.adopt(plan.part(slot), single)
        return search, step

    waiting: dict[int, tuple[EncodedImage, Progress]] = {}
    following = 0
    try:
        taken = zip(images, itertools.count() if places is None else places, strict=False)
        items = (
            _Item(number, image, with_prompts_at(options, [place]))
            for number, (image, place) in enumerate(taken)
        )
        found = decode_slots(
            session, items, begin, plan, check=cancel_check(options), counts=counts
        )
        for item, search in found:
            step = time.perf_counter() - item.begun
            waiting[item.number] = item.image, Progress(search.results, item.connector, 0.0, step)
            while following in waiting:
                yield waiting.pop(following)
                following += 1
    finally:
        head._give_back(workspace)


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
