"""The cache under reordering: every row's past is its ancestors', whatever the order of parents."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.decoding.session import DecoderSession, Step
from primelens.engine_fake import FakeGraph
from primelens.manifest import DecoderSpec

LAYERS, HEADS, WIDTH, CAPACITY = 2, 2, 3, 32


def stamping_graph() -> FakeGraph:
    """Writes a number that never comes again into every cache position that a step fills."""
    stamp = iter(range(1, 10**6))

    def run(feeds: Any) -> dict[str, Any]:
        start, total = feeds["position_ids"][:, 0], feeds["seqlens_k"] + 1
        for row in range(len(start)):
            for place in range(start[row], total[row]):
                for name in sorted(name for name in feeds if name.startswith("past_")):
                    feeds[name][row, :, place, :] = next(stamp)
        return {"logits": np.zeros((len(start), 5), np.float32)}

    return FakeGraph(run)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), rows=st.integers(1, 6), prompt=st.integers(1, 4))
def test_every_row_holds_its_ancestors_past(data: st.DataObject, rows: int, prompt: int) -> None:
    spec = DecoderSpec("x", LAYERS, HEADS, WIDTH, 5, CAPACITY)
    session = DecoderSession(stamping_graph(), spec, rows=rows, capacity=CAPACITY, cross={})
    past: list[list[Any]] = [[] for _ in range(rows)]

    def note(counts: Any) -> None:
        for row in range(rows):
            for place in range(len(past[row]), len(past[row]) + counts[row]):
                past[row].append([cache[row, :, place].copy() for cache in session._cache.values()])

    for _ in range(2):  # a session is used again
        session.reset()
        past = [[] for _ in range(rows)]
        lengths = np.array(
            data.draw(st.lists(st.integers(1, prompt), min_size=rows, max_size=rows))
        )
        session.run(Step(np.zeros((rows, prompt), np.int64), lengths))
        note(lengths)
        for _ in range(data.draw(st.integers(1, 8))):
            row_list = st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)
            parents = data.draw(st.one_of(row_list, st.permutations(range(rows)), st.none()))
            counts = np.array(data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)))
            if parents is not None:
                past = [list(past[parent]) for parent in parents]
                parents = np.array(parents)
            session.run(Step(np.zeros((rows, 1), np.int64), counts, parents))
            note(counts)
            assert session.lengths.tolist() == [len(each) for each in past]
            for row in range(rows):
                for place, wanted in enumerate(past[row]):
                    for cache, value in zip(session._cache.values(), wanted, strict=True):
                        np.testing.assert_array_equal(cache[row, :, place], value)


def test_only_what_differs_is_copied() -> None:
    spec = DecoderSpec("x", LAYERS, HEADS, WIDTH, 5, CAPACITY)
    session = DecoderSession(stamping_graph(), spec, rows=2, capacity=CAPACITY, cross={})
    one = np.ones(2, np.int64)
    step = Step(np.zeros((2, 1), np.int64), one)
    session.run(step)
    session.run(Step(step.tokens, one, np.array([0, 0])))
    session.run(step)
    session._cache["key.0"][1, :, 0] = -1  # position 0 came from row 0 and is not copied again
    session.run(Step(step.tokens, one, np.array([0, 0])))
    keys = session._cache["key.0"]
    assert (keys[1, :, 0] == -1).all()
    np.testing.assert_array_equal(keys[0, :, 1:3], keys[1, :, 1:3])
