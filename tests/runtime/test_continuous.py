"""Continuous batching: every picture's result is the one it has by itself, and few rows idle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import primelens
from primelens import CaptionOptions, DecodingOptions, OptionError
from primelens.continuous import write_each
from primelens.decoding.slots import SlotCounts
from primelens.results import Caption, Failure

from .conftest import FakeBundle

LENIENT = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(seed: int) -> Any:
    random = np.random.default_rng(seed)
    level = random.integers(0, 200)
    return random.integers(level, level + 56, (9, 12, 3), dtype=np.uint8)


DECODINGS = st.sampled_from(
    [
        DecodingOptions(),
        DecodingOptions(num_beams=3),
        DecodingOptions(num_beams=2, length_penalty=0.5, early_stopping=True),
        DecodingOptions(do_sample=True, seed=5, num_return_sequences=2),
        DecodingOptions(repetition_penalty=1.3, no_repeat_ngram_size=2),
    ]
)


def told(caption: Caption) -> Any:
    return (
        caption.text, caption.tokens, caption.token_logprobs, caption.score, caption.finish_reason,
        tuple(told(other) for other in caption.others),
    )  # fmt: skip


@LENIENT
@given(
    seeds=st.lists(st.integers(0, 40), max_size=12),
    size=st.integers(1, 5),
    decoding=DECODINGS,
    prompt=st.sampled_from([None, "a", "of the"]),
    limit=st.integers(1, 12),
)
def test_captions_are_those_of_pictures_by_themselves(
    fake_bundle: FakeBundle, seeds: list[int], size: int, decoding: Any, prompt: Any, limit: int
) -> None:
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    options = CaptionOptions(prompt=prompt, max_new_tokens=limit, decoding=decoding)
    images = [picture(seed) for seed in seeds]
    found = list(model.caption_batch(images, options, batch_size=size))
    wanted = [model.caption(image, options) for image in images]
    assert [told(c) for c in found if isinstance(c, Caption)] == [told(c) for c in wanted]


PROMPTS = st.sampled_from([None, "a", "of the", "two words and more"])


@LENIENT
@given(
    given=st.lists(st.tuples(st.integers(0, 40), PROMPTS, st.booleans()), max_size=12),
    size=st.integers(1, 5),
    decoding=DECODINGS,
    limit=st.integers(1, 12),
)
def test_prompts_of_their_own_are_told_apart(
    fake_bundle: FakeBundle,
    given: list[tuple[int, str | None, bool]],
    size: int,
    decoding: Any,
    limit: int,
) -> None:
    """One by one, in one call and in batches alike; what fails keeps its place and its prompt."""
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)

    def options(prompt: Any) -> CaptionOptions:
        return CaptionOptions(prompt=prompt, max_new_tokens=limit, decoding=decoding)

    alone = [
        told(model.caption(picture(n), options(prompt))) if good else None
        for n, prompt, good in given
    ]
    images = [picture(n) if good else b"no picture" for n, _, good in given]
    asked = options([prompt for _, prompt, _ in given])
    found = list(model.caption_batch(images, asked, batch_size=size))
    assert [told(c) if isinstance(c, Caption) else None for c in found] == alone
    if all(good for _, _, good in given):
        assert [told(c) for c in model.caption(images, asked)] == alone


@LENIENT
@given(
    places=st.lists(st.booleans(), min_size=1, max_size=15),
    size=st.integers(1, 4),
)
def test_failures_keep_their_places(fake_bundle: FakeBundle, places: list[bool], size: int) -> None:
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    images = [picture(n) if good else b"no picture" for n, good in enumerate(places)]
    found = list(model.caption_batch(images, batch_size=size))
    assert [isinstance(item, Caption) for item in found] == places
    assert all(isinstance(item, Caption | Failure) for item in found)


def test_rows_are_used_again_while_others_go_on(fake_bundle: FakeBundle) -> None:
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    options = CaptionOptions(max_new_tokens=20)
    images = [model.encode(picture(seed)) for seed in range(60)]
    counts = SlotCounts()
    written = list(write_each(model.head(), images, options, slots=8, counts=counts))
    lengths = [len(progress.results[0].tokens) for _, progress in written]
    assert len(set(lengths)) > 3  # they do end at different places
    assert counts.used == sum(lengths)
    assert counts.rows == 8 * counts.steps
    together = sum(8 * max(lengths[i : i + 8]) for i in range(0, 60, 8))
    assert counts.rows < together
    assert counts.waste < 0.15  # the last pictures have nobody to make room for


@pytest.mark.parametrize("prompt", [None, "of the"])
def test_slots_read_what_their_own_connector_writes(
    fake_bundle: FakeBundle, prompt: str | None
) -> None:
    """No session stands beside theirs, whose keys and values would have to be moved."""
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    options = CaptionOptions(prompt=prompt, max_new_tokens=6)
    images = [picture(seed) for seed in range(7)]
    found = list(model.caption_batch(images, options, batch_size=3))
    assert [space.shape for space in model.head()._free.values()] == [(3, 3)]
    wanted = [told(model.caption(image, options)) for image in images]
    assert [told(c) for c in found if isinstance(c, Caption)] == wanted
    assert len({c.tokens for c in found if isinstance(c, Caption)}) > 1


def test_nothing_is_taken_before_it_is_needed(fake_bundle: FakeBundle) -> None:
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    taken = []

    def images() -> Any:
        for seed in range(100):
            taken.append(seed)
            yield picture(seed)

    results = model.caption_batch(images(), CaptionOptions(max_new_tokens=4), batch_size=4)
    assert taken == []
    next(results)
    assert len(taken) <= 12


def test_an_error_ends_the_batch_and_frees_the_session(fake_bundle: FakeBundle) -> None:
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    wrong = CaptionOptions(decoding=DecodingOptions(suppress_tokens=tuple(range(300))))
    with pytest.raises(OptionError):
        list(model.caption_batch([picture(1)], wrong))
    assert len(list(model.caption_batch([picture(1), picture(2)]))) == 2


def test_a_single_slot_has_no_second_session(fake_bundle: FakeBundle) -> None:
    model = primelens.load(fake_bundle.folder, engine=fake_bundle.engine)
    head, built = model.head(), []
    plain = head._build
    head._build = lambda *shape: built.append(shape) or plain(*shape)  # type: ignore[method-assign,func-returns-value]
    options = CaptionOptions(prompt="of the", decoding=DecodingOptions(num_beams=3))
    assert (
        len(list(model.caption_batch([picture(n) for n in range(4)], options, batch_size=1))) == 4
    )
    assert len(built) == 1
    list(model.caption_batch([picture(n) for n in range(4)], options, batch_size=2))
    assert len(built) == 2  # the two slots'; prompts go through the first, as ever
