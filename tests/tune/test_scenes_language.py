"""Every caption that can be said is read back as true; false ones are caught slot by slot."""

import pytest

from primelens.tune.scenes.grammar import parse_caption, score_caption
from primelens.tune.scenes.language import OPENINGS, caption
from primelens.tune.scenes.objects import KIND_BY_NAME
from primelens.tune.scenes.questions import questions
from primelens.tune.scenes.world import SPLITS, Glyph, Group, Scene, Size, Statement, scene


def group(name: str, x: float, count: int = 1, size: Size = "medium") -> Group:
    glyphs = tuple(Glyph(x, 20.0 + 25.0 * i, 20.0, 0.0) for i in range(count))
    return Group(KIND_BY_NAME[name], size, glyphs)


SHOWN = Scene(
    "test",
    0,
    0,
    (group("cat", 20.0, 2), group("apple", 90.0, size="large")),
    Statement("left", (0,), (1,)),
    "beach",
    "night",
)


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_scores_perfectly(split: str) -> None:
    for index in range(250):
        shown = scene(split, index)  # type: ignore[arg-type]
        for variant in range(3):
            text = caption(shown, variant)
            score = score_caption(shown, text)
            assert score.whole, text
            assert score.f1 == score.counts == 1.0


def test_captions_vary_and_are_a_function_of_the_variant() -> None:
    shown = scene("train", 5)
    assert caption(shown, 3) == caption(shown, 3)
    assert len({caption(shown, v) for v in range(20)}) > 10
    texts = [caption(scene("train", i)) for i in range(400)]
    for opening in OPENINGS:
        assert any(text.startswith(opening) for text in texts)
    assert all(len(text.split()) <= 30 for text in texts)


def test_slots_of_a_caption() -> None:
    slots = parse_caption("There are two cats to the left of a big apple, on a beach at night.")
    assert [(m.kind, m.count, m.size) for m in slots.mentions] == [
        (KIND_BY_NAME["cat"], 2, None),
        (KIND_BY_NAME["apple"], 1, "large"),
    ]
    assert len(slots.subjects) == 1
    assert (slots.relation, slots.place, slots.time) == ("left", "beach", "night")
    assert slots.unread == ()


def test_names_of_two_words_and_names_inside_names() -> None:
    slots = parse_caption("a teddy bear between a bear and three sheep")
    names = [KIND_BY_NAME[n] for n in ("teddy bear", "bear", "sheep")]
    assert [m.kind for m in slots.mentions] == names
    assert slots.relation == "between"


@pytest.mark.parametrize(
    "text",
    [
        "two cats left of an apple",
        "an apple right of two cats on a beach",
        "at night, a large apple is to the right of two cats",
        "a picture of two cats left of a big apple on a beach at night",
    ],
)
def test_true_captions(text: str) -> None:
    assert score_caption(SHOWN, text).whole


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("three cats left of an apple", "counts"),
        ("two cats right of an apple", "relation"),
        ("two cats and an apple", "relation"),
        ("two dogs left of an apple", "precision"),
        ("two cats on a beach", "recall"),
        ("two cats left of an apple in a forest", "extras"),
        ("two cats left of an apple at sunset", "extras"),
        ("two cats left of a small apple", "extras"),
        ("two cats left of an apple and an apple", "counts"),
        ("two cats left of an apple left of left", "whole"),
        ("two cats left of an apple wearing a", "whole"),
    ],
)
def test_false_captions(text: str, slot: str) -> None:
    score = score_caption(SHOWN, text)
    assert not score.whole
    assert not score.__getattribute__(slot) or score.__getattribute__(slot) < 1.0


def test_f1_of_a_half_right_caption() -> None:
    score = score_caption(SHOWN, "two cats left of a dog")
    assert (score.precision, score.recall, score.f1) == (0.5, 0.5, 0.5)
    assert score_caption(SHOWN, "").f1 == 0.0


def test_a_lonely_group_has_no_relation() -> None:
    alone = Scene("test", 0, 0, (group("cat", 20.0),), None, "beach", "night")
    assert score_caption(alone, "a cat at night").relation is None
    assert score_caption(alone, "a cat at night").whole
    assert not score_caption(alone, "a cat left of a cat").whole


def test_questions_of_a_known_scene() -> None:
    answers = {q.text: q.answer for q in questions(SHOWN)}
    assert answers["how many cats are there?"] == "two"
    assert answers["what is left of the apple?"] == "two cats"
    assert answers["what is right of the cats?"] == "an apple"
    assert answers["where is this?"] == "beach"
    assert answers["what time of day is it?"] == "night"
    assert {q.answer for q in questions(SHOWN) if q.topic == "presence"} == {"yes", "no"}


def test_questions_are_the_same_for_ever_and_cover_every_topic() -> None:
    assert questions(scene("test", 3)) == questions(scene("test", 3))
    topics = {q.topic for i in range(50) for q in questions(scene("test", i))}
    assert topics == {"count", "presence", "relation", "place", "time", "object"}
