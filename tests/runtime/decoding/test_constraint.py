from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens import DependencyError, OptionError
from primelens.decoding.beam import BeamRules, BeamSearch
from primelens.decoding.constraint import Choices, Constraint, Grammar, OnlyAllowed, Vocabulary
from primelens.decoding.search import Controls, Greedy, Limits
from primelens.text import TokenText

from .tables import generate, run, table

VOCAB, EOS = 40, 39


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    choices=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=8),
    beams=st.integers(1, 4),
)
def test_choices_equal_a_prefix_function(seed: int, choices: list[list[int]], beams: int) -> None:
    constraint = Choices(choices, [EOS])
    logits = table(seed, VOCAB, [EOS])
    controls = Controls((OnlyAllowed(constraint),))
    prompts, limits = [[7], [8]], Limits((EOS,), 0, (6, 6))

    def after(tokens: list[int]) -> list[int]:
        allowed: list[int] = constraint.allowed(tuple(tokens)).tolist()
        return allowed

    output = generate(
        logits, VOCAB, prompts, max_new_tokens=6, eos_token_id=EOS, pad_token_id=0, num_beams=beams,
        prefix_allowed_tokens_fn=lambda _, ids: after(ids[1:].tolist()),
    )  # fmt: skip
    search: Any = Greedy(prompts, limits, controls)
    if beams > 1:
        search = BeamSearch(prompts, limits, BeamRules(beams), controls)
    results = run(logits, VOCAB, search, 2 * beams)
    for row, result in enumerate(results):
        assert result.tokens[:-1] in choices
        assert result.tokens[-1] == EOS
        wanted = output.sequences[row, 1:].tolist()
        assert wanted[: len(result.tokens)] == result.tokens


def test_there_are_no_more_results_than_choices() -> None:
    controls = Controls((OnlyAllowed(Choices([[1], [2, 3]], [EOS])),))
    search = BeamSearch(
        [[7]], Limits((EOS,), 0, (6,)), BeamRules(4, num_return_sequences=4), controls
    )
    result = run(table(1, VOCAB, [EOS]), VOCAB, search, 4)[0]
    found = [each.tokens for each in (result, *result.others)]
    assert sorted(found) == [[1, EOS], [2, 3, EOS]]


@pytest.fixture
def text(fake_bundle: Any) -> TokenText:
    """One id per byte, the end token first."""
    return TokenText(fake_bundle.folder / "tokenizer.json")


@pytest.fixture
def vocabulary(text: TokenText) -> Vocabulary:
    return Vocabulary(text.pieces(300), [0])


def decoded(text: TokenText, constraint: Constraint, seed: int, rules: BeamRules) -> list[str]:
    logits = table(seed, 300, [0])
    controls = Controls((OnlyAllowed(constraint),))
    search = BeamSearch([[5], [6]], Limits((0,), 0, (40, 40)), rules, controls)
    results = run(logits, 300, search, 2 * rules.num_beams)
    found = [each for result in results for each in (result, *result.others)]
    assert all(each.tokens[-1] == 0 for each in found)
    return [text.decode(each.tokens) for each in found]


@pytest.mark.parametrize(
    "pattern", [r"[a-f]{2,5}(é|ß)?", r"(red|green) (cat|dog)s?", r"\d{1,5}/\d\d"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_texts_match_the_expression(
    text: TokenText, vocabulary: Vocabulary, pattern: str, seed: int
) -> None:
    grammar = Grammar(vocabulary, regex=pattern)
    texts = decoded(text, grammar, seed, BeamRules(3, num_return_sequences=2))
    assert len(texts) == 4
    for found in texts:
        assert re.fullmatch(pattern, found), found


def test_texts_fit_the_schema(text: TokenText, vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 3, "maximum": 99},
            "ok": {"type": "boolean"},
        },
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    for given_as in (schema, json.dumps(schema)):
        grammar = Grammar(vocabulary, json_schema=given_as)
        for found in decoded(text, grammar, 4, BeamRules(2)):
            value = json.loads(found)
            assert 3 <= value["n"] <= 99
            assert isinstance(value["ok"], bool)


def test_a_state_does_not_depend_on_how_it_was_reached(vocabulary: Vocabulary) -> None:
    pattern = r"(ab|cd|a[x-z]+)*q"
    walked = Grammar(vocabulary, regex=pattern)
    random, new = np.random.default_rng(0), ()
    for _ in range(12):
        allowed = walked.allowed(new)
        assert Grammar(vocabulary, regex=pattern).allowed(new).tolist() == allowed.tolist()
        new = (*new, int(random.choice(allowed)))
        if new[-1] == 0:
            break
    assert walked.allowed((*new, 299)).tolist() == [0]  # off the path only the end is left


@pytest.mark.parametrize(
    "bad", [{"regex": "((("}, {"json_schema": "{"}, {"json_schema": {"type": "x"}}]
)
def test_what_is_not_understood_is_refused(vocabulary: Vocabulary, bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(bad))} is not understood"):
        Grammar(vocabulary, **bad)


def test_a_model_without_an_end_cannot_be_constrained() -> None:
    with pytest.raises(OptionError, match="no end token"):
        Choices([[1]], [])


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DependencyError, match=r"primelens\[constrain\]"):
        Vocabulary([b"a", b""], [1])


def test_words_may_bring_a_space_that_decoding_drops(tmp_path: Path) -> None:
    pieces = [b"", b" cat", b" dog", b"s", b"cat"]
    grammar = Grammar(Vocabulary(pieces, [0]), regex="(cat|dog)s?", leading_space=True)
    assert grammar.allowed(()).tolist() == [1, 2]
    assert grammar.allowed((1,)).tolist() == [0, 3]


def test_every_way_to_write_a_text_is_allowed() -> None:
    pieces = [b"", b"c", b"at", b"cat", b"a", b"t"]
    grammar = Grammar(Vocabulary(pieces, [0]), regex="cat")
    assert grammar.allowed(()).tolist() == [1, 3]
    assert grammar.allowed((1,)).tolist() == [2, 4]
    assert grammar.allowed((1, 4, 5)).tolist() == [0]
