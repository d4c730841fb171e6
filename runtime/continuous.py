"""Any number of encoded pictures through one head, by continuous batching, results in order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from primelens.decoding.search import Search
from primelens.decoding.session import DecoderSession, Step
from primelens.decoding.slots import SlotCounts, SlotPlan, decode_slots
from primelens.head import Progress, TextHead, asked_of, cancel_check
from primelens.options import CaptionOptions
from primelens.results import EncodedImage

__all__ = ["write_each"]


@dataclass
class _Item:
    """A picture on its way.

    Attributes:
        number: its place among the pictures.
        image: the picture.
        connector: seconds that the connector took.
        begun: when its first step began.
    """

    number: int
    image: EncodedImage
    connector: float = 0.0
    begun: float = 0.0


def write_each(
    head: TextHead,
    images: Iterable[EncodedImage],
    options: CaptionOptions,
    *,
    slots: int,
    counts: SlotCounts | None = None,
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
    """
    wanted = head.effective(options)
    rows = wanted.rows_per_picture
    prompt = head.prompt(options.prompt)
    need = len(prompt) + head.limits([prompt], options).max_new_tokens[0]
    workspace = head._take((slots, slots * rows), head._room(need))
    # A single slot reads what its own connector writes; several are filled one by one.
    single = workspace if slots == 1 else head._take((1, rows), head._room(need))
    session, alone, plan = workspace.session, single.session, SlotPlan(slots, rows)
    assert isinstance(session, DecoderSession)
    assert isinstance(alone, DecoderSession)
    assert single.connector is not None
    assert workspace.connector is not None
    derived, read = single.connector.outputs, workspace.connector.outputs

    def begin(slot: int, item: _Item) -> tuple[Search, Step | None]:
        item.connector = head._connect(single.connector, [item.image])
        if single is not workspace:
            for name, values in derived.items():
                read[name][slot] = values[0]
        item.begun = time.perf_counter()
        search, _ = head._search(wanted, asked_of([item.image], None, options), options)
        step: Step | None = search.begin()
        if step is not None and step.tokens.shape[1] > 1:  # the prompt, by itself, as ever
            alone.reset()
            step = search.advance(alone.run(step))
            if single is not workspace:
                session.adopt(plan.part(slot), alone)
        return search, step

    waiting: dict[int, tuple[EncodedImage, Progress]] = {}
    following = 0
    try:
        items = (_Item(number, image) for number, image in enumerate(images))
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
        if single is not workspace:
            head._give_back(single)
