"""Decoding options from the caller's side: a whole bundle, whose decoder is a random function."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

import primelens
from primelens import CaptionOptions, DecodingOptions, OptionError
from primelens.decoding.beam import BeamRules, BeamSearch
from primelens.decoding.search import Limits
from primelens.model import Model

from .conftest import EOS, FakeBundle


def picture(seed: int) -> Any:
    """A uint8 picture whose brightness depends on the seed."""
    random = np.random.default_rng(seed)
    level = random.integers(0, 200)
    return random.integers(level, level + 56, (12, 9, 3), dtype=np.uint8)


@pytest.fixture
def model(fake_bundle: FakeBundle) -> Model:
    return primelens.load(fake_bundle.folder, engine=fake_bundle.engine)


def decoding(**chosen: Any) -> CaptionOptions:
    return CaptionOptions(max_new_tokens=10, decoding=DecodingOptions(**chosen))


BEAMS = decoding(num_beams=3, num_return_sequences=2, length_penalty=0.7)
DRAWN = decoding(do_sample=True, temperature=1.3, top_k=20, num_return_sequences=2, seed=5)
PENALIZED = decoding(num_beams=2, repetition_penalty=1.5, no_repeat_ngram_size=2, min_length=6)


@pytest.mark.parametrize("options", [BEAMS, DRAWN, PENALIZED], ids=["beams", "drawn", "penalized"])
def test_a_picture_does_not_depend_on_its_companions(model: Model, options: CaptionOptions) -> None:
    images = [picture(seed) for seed in range(4)]
    for together, image in zip(model.caption(images, options), images, strict=True):
        alone = model.caption(image, options)
        for a, b in zip((together, *together.others), (alone, *alone.others), strict=True):
            assert (a.tokens, a.token_logprobs, a.score) == (b.tokens, b.token_logprobs, b.score)


def test_beams_reach_the_search(model: Model) -> None:
    image = model.encode(picture(1))
    head = model.head()
    caption = model.caption(image, BEAMS)
    search = BeamSearch([[EOS]], Limits((EOS,), EOS, (10,)), BeamRules(3, 0.7, False, 2))
    step = search.begin()
    paths = [[EOS]] * 3
    while step is not None:  # without a cache: the history is fed anew every time
        if step.parents is not None:
            fed = zip(step.parents, step.tokens[:, 0], strict=True)
            paths = [[*paths[parent], int(token)] for parent, token in fed]
        logits = [head.forced_logits(image, [*path[1:], 1])[-1] for path in paths]
        step = search.advance(np.stack(logits))
    best = search.results[0]
    assert (list(caption.tokens), caption.score) == (best.tokens, best.score)
    assert [list(each.tokens) for each in caption.others] == [e.tokens for e in best.others]
    assert caption.score is not None
    assert caption.others[0].score is not None
    assert caption.score >= caption.others[0].score
    assert caption.logprob == pytest.approx(caption.score * len(caption.tokens) ** 0.7, abs=1e-4)


def test_sessions_of_different_width_are_kept_apart(model: Model) -> None:
    image = picture(2)
    plain = model.caption(image)
    for options in (BEAMS, DRAWN, BEAMS):
        model.caption(image, options)
    again = model.caption(image)
    assert (plain.tokens, plain.token_logprobs) == (again.tokens, again.token_logprobs)
    assert (plain.score, plain.others, plain.alternatives) == (None, (), ())


def test_another_seed_draws_another_caption(model: Model) -> None:
    captions = {
        model.caption(picture(1), decoding(do_sample=True, seed=seed)).tokens for seed in range(4)
    }
    assert len(captions) > 1


@pytest.mark.parametrize(
    "options", [BEAMS, DRAWN, decoding(top_logprobs=2)], ids=["beams", "drawn", "top"]
)
def test_streams_give_the_caption(model: Model, options: CaptionOptions) -> None:
    pieces = list(model.stream(picture(3), options))
    caption = pieces[-1].caption
    assert caption is not None
    assert "".join(piece.text for piece in pieces) == caption.text
    whole = model.caption(picture(3), options)
    assert caption.tokens == whole.tokens
    assert [each.text for each in caption.others] == [each.text for each in whole.others]


def test_choices(model: Model) -> None:
    choices = ("red", "redder", "blue")
    for beams in (1, 3):
        options = decoding(choices=choices, num_beams=beams, num_return_sequences=beams)
        caption = model.caption(picture(4), options)
        texts = [each.text for each in (caption, *caption.others)]
        assert set(texts) <= set(choices)
        assert len(set(texts)) == len(texts) == beams
        assert caption.finish_reason == "stop"


def test_grammars(model: Model) -> None:
    caption = model.caption(picture(5), decoding(regex="[a-c]{2,4}é?", num_beams=2))
    assert re.fullmatch("[a-c]{2,4}é?", caption.text)
    schema = {"type": "object", "properties": {"n": {"enum": [7, 12]}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    assert json.loads(model.caption(picture(5), decoding(json_schema=schema)).text)["n"] in (7, 12)


def test_stop_strings_are_kept(model: Model) -> None:
    free = model.caption(picture(6), decoding())
    text = model.head().text
    stop = text.piece_bytes(free.tokens[2]).decode("utf-8", errors="ignore") or "x"
    first = next(i for i, t in enumerate(free.tokens) if stop.encode() in text.piece_bytes(t))
    caption = model.caption(picture(6), decoding(stop=(stop,)))
    assert caption.tokens == free.tokens[: first + 1]
    assert caption.finish_reason == "stop"


def test_bad_words_do_not_occur(model: Model) -> None:
    text, images = model.head().text, [picture(seed) for seed in range(6)]
    free = model.caption(images, decoding(num_beams=2))
    pieces = {t: text.piece_bytes(t) for caption in free for t in caption.tokens}
    letters = {t: p.decode() for t, p in pieces.items() if len(p) == 1 and p.isascii()}
    assert letters
    options = decoding(num_beams=2, bad_words=tuple(letters.values()))
    for caption in model.caption(images, options):
        assert not letters.keys() & set(caption.tokens)


def _settings(bundle: FakeBundle, **chosen: Any) -> Model:
    def change(data: dict[str, Any]) -> None:
        data["heads"]["caption"]["generation"]["settings"] = chosen

    bundle.rewrite(change)
    return primelens.load(bundle.folder, engine=bundle.engine)


def test_the_checkpoints_settings_are_honoured(fake_bundle: FakeBundle, model: Model) -> None:
    wanted = model.caption(picture(8), CaptionOptions(decoding=DecodingOptions(num_beams=3)))
    changed = _settings(fake_bundle, num_beams=3)
    assert changed.caption(picture(8)).tokens == wanted.tokens
    assert changed.head().effective_generation()["strategy"] == "beam search"
    greedy = changed.caption(picture(8), CaptionOptions(decoding=DecodingOptions(num_beams=1)))
    assert greedy.tokens == model.caption(picture(8)).tokens


def test_settings_that_cannot_be_honoured_are_refused_when_used(fake_bundle: FakeBundle) -> None:
    model = _settings(fake_bundle, penalty_alpha=0.6)
    assert model.encode(picture(9)).taps  # the tower works all the same
    assert model.head().effective_generation()["unsupported"] == {"penalty_alpha": 0.6}
    with pytest.raises(OptionError, match=r"penalty_alpha=0\.6"):
        model.caption(picture(9))
    assert model.caption(picture(9), decoding(ignore=("penalty_alpha",))).tokens


def test_the_least_length_counts_start_tokens_and_new_tokens_do_not(model: Model) -> None:
    for seed in range(6):
        by_length = model.caption(picture(seed), decoding(min_length=8))
        by_new = model.caption(picture(seed), CaptionOptions(max_new_tokens=10, min_new_tokens=7))
        assert by_length.tokens == by_new.tokens
        assert len(by_new.tokens) >= 8
