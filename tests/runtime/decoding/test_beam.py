"""Beam search equals transformers' on the same logits."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.decoding import processors
from primelens.decoding.beam import BeamRules, BeamSearch
from primelens.decoding.search import Continuation, Controls, Limits

from .tables import generate, run, table

VOCAB = 60
RULES = st.builds(
    BeamRules,
    num_beams=st.integers(2, 6),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
)


def all_of(result: Continuation) -> list[Continuation]:
    return [result, *result.others]


def expected(output: Any, prompt: int) -> list[tuple[list[int], float]]:
    """Tokens and score of every returned sequence, cut at the end that transformers recorded."""
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    scores = output.sequences_scores.tolist()
    rows = output.sequences[:, prompt:].tolist()
    return [(row[:n], s) for row, n, s in zip(rows, lengths, scores, strict=True)]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rules=RULES,
    returned=st.integers(1, 6),
    pictures=st.integers(1, 3),
    prompt=st.integers(1, 3),
    longest=st.integers(1, 12),
    ends=st.sets(st.integers(50, 59), max_size=3),
)
def test_beams_equal_transformers(
    seed: int,
    rules: BeamRules,
    returned: int,
    pictures: int,
    prompt: int,
    longest: int,
    ends: set[int],
) -> None:
    rules = BeamRules(
        rules.num_beams, rules.length_penalty, rules.early_stopping, min(returned, rules.num_beams)
    )
    eos = sorted(ends)
    logits = table(seed, VOCAB, eos)
    prompts = [[picture, *range(10, 9 + prompt)] for picture in range(pictures)]
    output = generate(
        logits, VOCAB, prompts, num_beams=rules.num_beams, length_penalty=rules.length_penalty,
        early_stopping=rules.early_stopping, num_return_sequences=rules.num_return_sequences,
        max_new_tokens=longest, eos_token_id=eos or None, pad_token_id=0,
    )  # fmt: skip
    limits = Limits(tuple(eos), 0, (longest,) * pictures)
    search = BeamSearch(prompts, limits, rules)
    results = run(logits, VOCAB, search, pictures * rules.num_beams)
    found = [each for result in results for each in all_of(result)]
    wanted = expected(output, prompt)
    assert [each.tokens for each in found] == [tokens for tokens, _ in wanted]
    assert [each.score for each in found] == pytest.approx(
        [s for _, s in wanted], rel=1e-6, abs=1e-5
    )
    for each in found:
        assert each.finish_reason == ("stop" if each.tokens[-1] in ends else "length")
        total = sum(each.logprobs) / len(each.tokens) ** rules.length_penalty
        assert each.score == pytest.approx(total, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), rules=RULES, longest=st.integers(2, 10))
def test_beams_equal_transformers_under_every_processor(
    data: st.DataObject, seed: int, rules: BeamRules, longest: int
) -> None:
    """The assembly is tested elsewhere; here processors meet log-probabilities and reordering."""
    eos, prompts = [58, 59], [[1, 2], [3, 2]]
    logits = table(seed, VOCAB, eos)
    random = np.random.default_rng(seed)
    words = [random.integers(0, 50, 2).tolist() for _ in range(200)] + [[5]]
    suppressed = random.integers(0, 50, 5).tolist()
    options: dict[str, Any] = {
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.7])),
        "no_repeat_ngram_size": data.draw(st.integers(0, 3)),
        "bad_words_ids": data.draw(st.sampled_from([None, words])),
        "min_new_tokens": data.draw(st.sampled_from([None, min(4, longest)])),
        "forced_eos_token_id": data.draw(st.sampled_from([None, 59])),
        "suppress_tokens": data.draw(st.sampled_from([None, suppressed])),
    }
    chain: list[processors.Processor] = []
    if options["repetition_penalty"] != 1.0:
        chain.append(processors.RepetitionPenalty(options["repetition_penalty"]))
    if options["no_repeat_ngram_size"]:
        chain.append(processors.NoRepeatNGram(options["no_repeat_ngram_size"]))
    if options["bad_words_ids"]:
        forbidden = processors.bad_words(words, eos)
        assert forbidden is not None
        chain.append(forbidden)
    if options["min_new_tokens"]:
        chain.append(processors.MinNewTokens(min(4, longest), eos))
    if options["forced_eos_token_id"]:
        chain.append(processors.ForcedEos([2 + longest] * 2 * rules.num_beams, [59]))
    if options["suppress_tokens"]:
        chain.append(processors.Suppress(suppressed))
    output = generate(
        logits, VOCAB, prompts, num_beams=rules.num_beams, length_penalty=rules.length_penalty,
        early_stopping=rules.early_stopping, max_new_tokens=longest, eos_token_id=eos,
        pad_token_id=0, **options,
    )  # fmt: skip
    search = BeamSearch(prompts, Limits((58, 59), 0, (longest,) * 2), rules, Controls(tuple(chain)))
    found = run(logits, VOCAB, search, 2 * rules.num_beams)
    wanted = expected(output, 2)
    assert [each.tokens for each in found] == [tokens for tokens, _ in wanted]
    assert [each.score for each in found] == pytest.approx(
        [s for _, s in wanted], rel=1e-6, abs=1e-5
    )


def advanced(pictures: int, controls: Controls) -> tuple[int, bool]:
    """Arrays of ``[3, V]`` float32 that a search needs at most at once in three steps of pictures,
    and whether the logits were left as they were.
    """
    vocab, rows = 50_000, 3 * pictures
    logits = np.random.default_rng(pictures).normal(size=(rows, vocab)).astype(np.float32)
    before = logits.copy()
    limits = Limits((), 0, (9,) * pictures)
    search = BeamSearch([[1]] * pictures, limits, BeamRules(3), controls)
    search.begin()
    tracemalloc.start()
    try:
        for _ in range(3):
            assert search.advance(logits) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak // (3 * vocab * 4), np.array_equal(logits, before)


def test_a_search_keeps_one_pictures_scores_not_all() -> None:
    assert advanced(8, Controls()) == (1, True)
    processed = Controls((processors.RepetitionPenalty(1.2),))
    assert advanced(1, processed) == (2, True)  # what processors change is an array of its own
