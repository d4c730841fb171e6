"""VQA accuracy, quirk by quirk, and token F1."""

from __future__ import annotations

import pytest

from primelens.errors import InputError
from primelens.tune.metrics import (
    normalise_answer,
    token_f1,
    token_f1_tally,
    vqa_accuracy,
    vqa_accuracy_tally,
)


@pytest.mark.parametrize(
    ("matches", "expected"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_accuracy_leaves_each_annotator_out_in_turn(matches: int, expected: float) -> None:
    # With 3 matches: the 3 who match see 2 others (2/3), the 7 others see 3 (1): (3·2/3 + 7) / 10.
    annotators = ["yes"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert vqa_accuracy("yes", annotators) == pytest.approx(expected)


def test_unanimous_answers_are_compared_as_they_stand() -> None:
    assert vqa_accuracy("yes", ["Yes"] * 10) == 0
    assert vqa_accuracy("Yes", ["Yes"] * 10) == 1
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy(" 2\n", ["2"] * 10) == 1  # white space at the ends goes all the same


def test_where_annotators_differ_both_sides_are_normalised() -> None:
    assert vqa_accuracy("yes", ["Yes"] * 9 + ["no"]) == 1
    assert vqa_accuracy("Two.", ["2"] * 9 + ["no"]) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("none", "0"),  # a word that is a number
        ("zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("The man on a horse", "man on horse"),
        ("an", ""),
        ("cant", "can't"),
        ("hes", "he's"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # two apostrophes missing: not in the map
        ("somebody'd", "somebodyd"),  # the map's own slip
        ("Im", "im"),  # its entry is spelled with a capital, which no longer occurs
        ("let's", "let's"),
        ("left/right", "left right"),  # a mark within a word becomes a space
        ("left/ right", "left right"),  # beside a space it vanishes
        ("t-shirt", "t shirt"),
        ("1,000 black-white", "1000 blackwhite"),  # a comma between digits: all marks vanish
        ("1, 000", "1 000"),
        ("2.5", "2.5"),
        ("2.", "2"),  # the look-behind that was meant would keep this point
        (".5", ".5"),
        ("a.b.", "ab"),
        ("U.S.", "us"),
        ("no!", "no"),
        ("what?yes", "what yes"),
        ("don't", "don't"),
        ("it's 5:30", "it's 5:30"),  # neither apostrophe nor colon is in the list
        ("Yes\tSir\n", "yes sir"),
        ("." * 40, "." * 8),  # at most 32 points go
    ],
)
def test_the_normalisation(answer: str, expected: str) -> None:
    assert normalise_answer(answer) == expected


def test_an_answer_without_annotators_is_refused() -> None:
    with pytest.raises(InputError, match="annotator"):
        vqa_accuracy("yes", [])


def test_questions_are_grouped_by_image() -> None:
    truth = [["a cat"] * 10, ["2"] * 10, ["red"] * 10]
    tally = vqa_accuracy_tally(["a cat", "3", "red"], truth, [0, 0, 1])
    assert tally.rows.tolist() == [[1.0, 2.0], [1.0, 1.0]]
    assert tally.scores() == {"VQA accuracy": pytest.approx(2 / 3)}
    with pytest.raises(InputError, match="number 1 has no question"):
        vqa_accuracy_tally(["a", "b"], [["a"], ["b"]], [0, 2])


def test_token_f1_by_hand() -> None:
    # Two of three words are shared with a truth of two words: 2·2 / (3 + 2).
    assert token_f1("a big red bus", ["red bus", "tram"]) == pytest.approx(4 / 5)
    assert token_f1("bus bus", ["bus"]) == pytest.approx(2 / 3)
    assert token_f1("the", ["a"]) == 1  # nothing is left of either
    assert token_f1("the", ["bus"]) == 0
    tally = token_f1_tally(["bus", "the"], [["bus"], ["bus"]], [0, 0])
    assert tally.scores() == {"token F1": 0.5}
