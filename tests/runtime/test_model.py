from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import primelens
from primelens import CaptionOptions
from primelens.bundle import open_bundle
from primelens.encoder import ImageEncoder
from primelens.model import Model

from .conftest import EOS, POSITIONS, FakeBundle, history_logits

LENIENT = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def picture(seed: int) -> Any:
    """A uint8 picture ``[h, w, 3]`` whose size and brightness depend on the seed."""
    random = np.random.default_rng(seed)
    height, width = random.integers(5, 30, 2)
    level = random.integers(0, 200)
    return random.integers(level, level + 56, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def model(fake_bundle: FakeBundle) -> Model:
    return primelens.load(fake_bundle.folder, engine=fake_bundle.engine)


def reference(model: Model, image: Any, limit: int, prompt: list[int], least: int = 0) -> list[int]:
    """Greedy decoding written down naively, straight from the fake decoder's definition."""
    number = float(model.encode(image).taps["last_hidden_state"][0, 0])
    history = list(prompt)
    while len(history) - len(prompt) < limit:
        logits = history_logits(number, history)
        if len(history) - len(prompt) < least:
            logits[EOS] = -np.inf
        history.append(int(logits.argmax()))
        if history[-1] == EOS:
            break
    return history[len(prompt) :]


@LENIENT
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=6), limit=st.integers(1, 20),
       least=st.integers(0, 5))  # fmt: skip
def test_captions_follow_the_definition_whatever_their_companions(
    model: Model, seeds: list[int], limit: int, least: int
) -> None:
    images = [picture(seed) for seed in seeds]
    options = CaptionOptions(max_new_tokens=limit, min_new_tokens=min(least, limit))
    captions = model.caption(images, options)
    for image, caption in zip(images, captions, strict=True):
        wanted = reference(model, image, limit, [EOS], min(least, limit))
        assert list(caption.tokens) == wanted
        assert caption.finish_reason == ("stop" if wanted[-1] == EOS else "length")
        alone = model.caption(image, options)
        assert (alone.tokens, alone.logprob) == (caption.tokens, caption.logprob)


def test_logprobs_are_those_of_the_chosen_tokens(model: Model) -> None:
    image = picture(5)
    caption = model.caption(image)
    number = float(model.encode(image).taps["last_hidden_state"][0, 0])
    history = [EOS]
    for token, logprob in zip(caption.tokens, caption.token_logprobs, strict=True):
        logits = history_logits(number, history).astype(np.float64)
        exact = logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert logprob == pytest.approx(exact, abs=1e-5)
        history.append(token)
    assert caption.logprob == pytest.approx(sum(caption.token_logprobs))


def test_an_encoded_image_is_accepted_wherever_an_image_is(model: Model) -> None:
    image = picture(3)
    encoded = model.encode(image)
    runs = model._encoder.tower.calls  # type: ignore[union-attr]
    assert model.caption(encoded).tokens == model.caption(image).tokens
    assert model._encoder.tower.calls == runs + 1  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="read-only"):
        encoded.taps["last_hidden_state"][0] = 1


def test_an_encoded_image_of_another_tower_is_refused(model: Model) -> None:
    encoded = model.encode(picture(1))
    object.__setattr__(encoded, "identities", {"last_hidden_state": "f" * 64})
    with pytest.raises(primelens.InputError, match="another tower"):
        model.caption(encoded)


def test_a_prompt_is_continued_and_not_repeated(model: Model) -> None:
    image = picture(8)
    caption = model.caption(image, CaptionOptions(prompt="ab", max_new_tokens=4))
    ids = model.head().text.encode("ab")
    assert list(caption.tokens) == reference(model, image, 4, [EOS, *ids])


@pytest.mark.parametrize("prompt", ["", "x" * (POSITIONS + 1)])
def test_an_empty_or_overlong_prompt_is_refused(model: Model, prompt: str) -> None:
    with pytest.raises(primelens.PromptError, match="prompt"):
        model.caption(picture(1), CaptionOptions(prompt=prompt))


def test_every_picture_has_its_own_prompt(model: Model) -> None:
    images = [picture(n) for n in range(3)]
    prompts = ["ab", None, "a longer one"]
    found = model.caption(images, CaptionOptions(prompt=prompts, max_new_tokens=4))
    for image, prompt, caption in zip(images, prompts, found, strict=True):
        ids = [] if prompt is None else model.head().text.encode(prompt)
        assert list(caption.tokens) == reference(model, image, 4, [EOS, *ids])
        assert caption.question is None
    prompts[0] = "cd"  # the options are what they were when they were made
    assert CaptionOptions(prompt=prompts) == CaptionOptions(prompt=tuple(prompts))


@pytest.mark.parametrize("count", [1, 3])
def test_prompts_for_other_pictures_are_refused(model: Model, count: int) -> None:
    images, options = [picture(n) for n in range(count)], CaptionOptions(prompt=["a", "b"])
    with pytest.raises(primelens.OptionError, match=f"2 prompts for {count} pictures"):
        model.caption(images, options)
    for size in (1, 2, 8):
        with pytest.raises(primelens.OptionError, match=r"2 prompts for (1|more) pictures"):
            list(model.caption_batch(images, options, batch_size=size))
    with pytest.raises(primelens.OptionError, match="2 prompts for 1 pictures"):
        list(model.stream(images[0], options))


def test_more_tokens_than_positions_are_refused(model: Model) -> None:
    with pytest.raises(primelens.OptionError, match=f"room for {POSITIONS}"):
        model.caption(picture(1), CaptionOptions(max_new_tokens=POSITIONS + 1))
    longest = CaptionOptions(max_new_tokens=POSITIONS, min_new_tokens=POSITIONS)
    assert len(model.caption(picture(1), longest).tokens) == POSITIONS


@pytest.mark.parametrize(
    "bad",
    [{"max_new_tokens": 0}, {"max_new_tokens": 2.5}, {"min_new_tokens": -1}, {"prompt": 3},
     {"prompt": ["a", 3]}, {"prompt": {"a"}},
     {"max_new_tokens": 2, "min_new_tokens": 3}, {"max_new_tokens": True}],
)  # fmt: skip
def test_bad_options_are_refused_when_they_are_made(bad: dict[str, Any]) -> None:
    with pytest.raises(primelens.OptionError, match=next(iter(bad))):
        CaptionOptions(**bad)


def test_a_bad_picture_fails_alone(model: Model) -> None:
    rows = list(model.caption_batch([picture(1), b"no picture", picture(2)], batch_size=2))
    assert isinstance(rows[1], primelens.Failure)
    assert isinstance(rows[1].error, primelens.ImageError)
    assert [row.tokens for row in rows if isinstance(row, primelens.Caption)] == [
        model.caption(picture(1)).tokens,
        model.caption(picture(2)).tokens,
    ]


def test_a_batchs_pictures_are_read_side_by_side_in_order(
    fake_bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers wait for each other: with one at a time the barrier would break."""
    model = Model(open_bundle(fake_bundle.folder), fake_bundle.engine, threads=2)
    alone = [model.caption(picture(seed)).tokens for seed in range(4)]
    both = threading.Barrier(2)
    attempt = ImageEncoder.attempt

    def waiting(self: ImageEncoder, image: Any) -> Any:
        both.wait(timeout=20)
        return attempt(self, image)

    monkeypatch.setattr(ImageEncoder, "attempt", waiting)
    rows = list(model.caption_batch([picture(seed) for seed in range(4)], batch_size=4))
    assert [row.tokens for row in rows if isinstance(row, primelens.Caption)] == alone


def test_one_thread_reads_one_picture_at_a_time(
    fake_bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(open_bundle(fake_bundle.folder), fake_bundle.engine, threads=1)
    readers: set[int] = set()
    attempt = ImageEncoder.attempt

    def noted(self: ImageEncoder, image: Any) -> Any:
        readers.add(threading.get_ident())
        return attempt(self, image)

    monkeypatch.setattr(ImageEncoder, "attempt", noted)
    list(model.caption_batch([picture(seed) for seed in range(4)], batch_size=4))
    assert readers == {threading.get_ident()}


def test_batches_are_lazy_and_need_a_size(model: Model) -> None:
    taken: list[int] = []

    def source() -> Any:
        for seed in range(10):
            taken.append(seed)
            yield picture(seed)

    rows = model.caption_batch(source(), batch_size=3)
    next(rows)
    assert taken == [0, 1, 2]
    with pytest.raises(primelens.InputError, match="batch_size"):
        next(model.caption_batch([], batch_size=0))
    assert model.caption([]) == []


def test_a_stream_joins_to_the_caption(model: Model) -> None:
    for seed in range(10):
        pieces = list(model.stream(picture(seed)))
        assert pieces[-1].caption is not None
        assert "".join(piece.text for piece in pieces) == pieces[-1].caption.text
        assert pieces[-1].caption.tokens == model.caption(picture(seed)).tokens
        assert all(piece.caption is None for piece in pieces[:-1])


def test_a_closed_stream_gives_its_session_back(model: Model) -> None:
    stream = model.stream(picture(1), CaptionOptions(min_new_tokens=12))
    next(stream)
    stream.close()
    assert len(model.head()._free) == 1


def test_a_call_is_cancelled(model: Model) -> None:
    event = threading.Event()
    event.set()
    with pytest.raises(primelens.CancelledError):
        model.caption(picture(1), CaptionOptions(cancel=event))
    event.clear()
    assert model.caption(picture(1), CaptionOptions(cancel=event)).tokens


def test_one_model_serves_many_threads(model: Model) -> None:
    wanted = {seed: model.caption(picture(seed)).tokens for seed in range(12)}
    with ThreadPoolExecutor(6) as pool:
        seeds = [seed for _ in range(8) for seed in wanted]
        found = list(pool.map(lambda seed: (seed, model.caption(picture(seed)).tokens), seeds))
    assert all(wanted[seed] == tokens for seed, tokens in found)


def test_timings_cover_every_stage(model: Model) -> None:
    timings = model.caption(picture(1), CaptionOptions(min_new_tokens=3)).timings
    parts = timings.as_milliseconds()
    assert set(parts) == {"preprocess", "tower", "connector", "prefill", "step", "total"}
    assert all(value > 0 for value in parts.values())
    assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"], abs=0.01)


def test_a_tower_or_decoder_that_answers_nan_is_named(fake_bundle: FakeBundle) -> None:
    for name, output in (("tower.onnx", "last_hidden_state"), ("caption.decoder.onnx", "logits")):
        engine = fake_bundle.engine
        graph = engine._graphs[name]
        sound = graph._function
        graph._function = lambda feeds, sound=sound, output=output: {
            k: np.full_like(v, np.nan) if k == output else v for k, v in sound(feeds).items()
        }
        with pytest.raises(primelens.EngineError, match="not finite"):
            primelens.load(fake_bundle.folder, engine=engine).caption(picture(1))
        graph._function = sound
