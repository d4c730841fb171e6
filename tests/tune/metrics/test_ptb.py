"""The tokeniser: what the official one (Stanford's, 3.4.1) and its list left of these captions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.tune.metrics.ptb import PUNCTUATION, tokenize

# Right: the official tokeniser's own output, recorded.
OFFICIAL = [
    ("The man's dog can't, won't, cannot.", "the man 's dog ca n't wo n't can not"),
    ("They're gonna wanna gotta lemme gimme", "they 're gon na wan na got ta lem me gim me"),
    ("THE MAN'S DOG DON'T", "the man 's dog do n't"),
    ("he'd've shouldn't've it's its'", "he 'd 've should n't 've it 's its"),
    ("He said \"hello\" and 'bye' (again)", "he said hello and bye -lrb- again -rrb-"),
    ("[x] {y}", "-lsb- x -rsb- -lcb- y -rcb-"),
    ("black/white photo and/or w/ a man/ /b", "black/white photo and/or w / a man / / b"),
    (
        "1/2 of 3.5 and 1,000 at 10:30 or 10:30pm, 12/25/2010",
        "1/2 of 3.5 and 1,000 at 10:30 or 10:30 pm 12/25/2010",
    ),
    ("$5.00 5% 5'10\" 6 ft. tall", "$ 5.00 5 % 5 10 6 ft. tall"),
    ("Mr. Smith on St. James Ave.", "mr. smith on st. james ave."),
    ("in the U.S. at 5 p.m.", "in the u.s. at 5 p.m."),
    ("Plan A. A dog sat. The sun.", "plan a. a dog sat the sun"),
    (
        "a well-known T-shirt - dash -- double --- triple -dog dog-",
        "a well-known t-shirt dash double triple dog dog",
    ),
    ("wait... what.... ok . . . hm… the man .. dog", "wait what ok hm the man dog"),
    ("rock & roll R&B AT&T a&b", "rock & roll r&b at&t a & b"),
    (
        "rock 'n' roll 'em 'tis '90s 1950's y'all ma'am o'clock",
        "rock 'n' roll 'em 't is '90s 1950 's y' all ma'am o'clock",
    ),
    ("boys’ boy’s “quote” can’t", "boys boy 's quote ca n't"),
    ("hello!! what?! no;yes a,b what? stop!", "hello !! what ?! no yes a b what stop"),
    ("word.Word word!word ab.cd. a.b.", "word.word word!word ab.cd a.b."),
    ("3.Dog dog,5 no. 5 no. five #5 #tag", "3 dog dog ,5 no. 5 no five # 5 #tag"),
    ("a 2-year-old on 4x4s, 50mm, 737-800", "a 2-year-old on 4x4s 50mm 737-800"),
    (
        "dog's-eye 70's-style 4:3-ratio 1.5-inch 1.5m",
        "dog 's eye 70 's style 4:3 ratio 1.5-inch 1.5 m",
    ),
    ("5¢ £5 90° ½ cup C++ a+b a_b _c_", "5 cents # 5 90 ° 1/2 cup c++ a + b a_b _ c _"),
    ("rock &amp; roll &lt;3", "rock & roll < 3"),
    ("  two\t  words \n", "two words"),
    ("", ""),
    ("...", ""),
]


@pytest.mark.parametrize(("caption", "expected"), OFFICIAL)
def test_the_official_words(caption: str, expected: str) -> None:
    assert tokenize(caption) == expected.split()


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=80))
def test_any_text_becomes_words_without_white_space_or_removed_marks(text: str) -> None:
    found = tokenize(text)
    assert all(word and not any(char.isspace() for char in word) for word in found)
    assert not PUNCTUATION.intersection(found)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.from_regex(r"[a-z]{2,9}", fullmatch=True), max_size=9))
def test_plain_words_stay(plain: list[str]) -> None:
    split = {"cannot", "gonna", "wanna", "gotta", "lemme", "gimme"}
    kept = [word for word in plain if word not in split]
    assert tokenize(" ".join(kept)) == kept


@pytest.mark.parametrize("unit", ["1", "a.", "1.", "'", "n't", "<a ", "a-", "(", "@", "x@", ". "])
def test_long_runs_take_no_long_time(unit: str) -> None:
    """Without a clock: a pattern that backtracks badly would not come back from this at all."""
    assert isinstance(tokenize(unit * 20_000), list)
