"""Every processor and warper equals transformers' own, element by element, on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from primelens import OptionError
from primelens.decoding import processors as ours
from primelens.decoding import warpers
from primelens.decoding.history import History
from primelens.decoding.processors import Processor

THOROUGH = settings(deadline=None, max_examples=60)


class Case:
    """Random scores, coarse ones now and then so that there are ties, and ragged histories."""

    def __init__(self, seed: int, *, ties: bool = True) -> None:
        self.random = random = np.random.default_rng(seed)
        self.vocab = int(random.integers(8, 400))
        rows = int(random.integers(1, 6))
        scores = random.standard_normal((rows, self.vocab)) * random.choice([0.5, 2.0, 6.0])
        if ties and random.random() < 0.3:
            scores = np.round(scores)
        if random.random() < 0.3:
            scores[:, random.integers(0, self.vocab, self.vocab // 3)] = -np.inf
            scores[:, 3] = 1.0
        self.scores = scores.astype(np.float32)
        # Few different tokens, so that n-grams do repeat.
        self.alphabet = random.integers(0, self.vocab, int(random.integers(2, 6)))
        self.prompts = [self.tokens(1, 6) for _ in range(rows)]
        self.news = [self.tokens(0, 12) for _ in range(rows)]

    def tokens(self, least: int, most: int) -> list[int]:
        size = int(self.random.integers(least, most + 1))
        drawn: list[int] = self.random.choice(self.alphabet, size).tolist()
        return drawn

    def history(self) -> History:
        history = History(self.prompts, room=1)
        for place in range(max(len(new) for new in self.news)):
            counted = np.array([place < len(new) for new in self.news])
            tokens = np.array([new[place] if place < len(new) else 0 for new in self.news])
            history.append(tokens, counted)
        return history

    def check(self, mine: Processor, source: Callable[[int], Any]) -> None:
        """``mine`` on all rows at once equals ``source(row)`` on each row alone."""
        found = self.scores.copy()
        mine(found, self.history())
        for row, scores in enumerate(self.scores):
            ids = torch.tensor([self.prompts[row] + self.news[row]])
            wanted = source(row)(ids, torch.from_numpy(scores[None].copy())).numpy()[0]
            np.testing.assert_array_equal(found[row], wanted)


seeds = st.integers(0, 2**32 - 1)


@THOROUGH
@given(seed=seeds, size=st.integers(1, 4))
def test_no_repeat_ngram(seed: int, size: int) -> None:
    Case(seed).check(ours.NoRepeatNGram(size), lambda _: theirs.NoRepeatNGramLogitsProcessor(size))


@THOROUGH
@given(seed=seeds, penalty=st.floats(0.1, 4.0))
def test_repetition_penalty(seed: int, penalty: float) -> None:
    Case(seed).check(
        ours.RepetitionPenalty(penalty), lambda _: theirs.RepetitionPenaltyLogitsProcessor(penalty)
    )


@THOROUGH
@given(seed=seeds, length=st.integers(1, 20), ends=st.lists(st.integers(0, 7), min_size=1))
def test_min_length(seed: int, length: int, ends: list[int]) -> None:
    Case(seed).check(
        ours.MinLength(length, ends), lambda _: theirs.MinLengthLogitsProcessor(length, ends)
    )


@THOROUGH
@given(seed=seeds, length=st.integers(1, 14), ends=st.lists(st.integers(0, 7), min_size=1))
def test_min_new_tokens(seed: int, length: int, ends: list[int]) -> None:
    case = Case(seed)
    case.check(
        ours.MinNewTokens(length, ends),
        lambda row: theirs.MinNewTokensLengthLogitsProcessor(len(case.prompts[row]), length, ends),
    )


def sequences(case: Case, count: int) -> list[list[int]]:
    """Short sequences of the case's alphabet, no two alike."""
    drawn = {tuple(case.tokens(1, 3)) for _ in range(count)}
    return [list(sequence) for sequence in drawn]


@THOROUGH
@given(seed=seeds, count=st.integers(1, 12))
def test_sequence_bias(seed: int, count: int) -> None:
    case = Case(seed)
    biases = {tuple(s): float(case.random.normal() * 3) for s in sequences(case, count)}
    case.check(ours.SequenceBias(biases), lambda _: theirs.SequenceBiasLogitsProcessor(biases))


@THOROUGH
@given(seed=seeds, count=st.integers(1, 12))
def test_bad_words(seed: int, count: int) -> None:
    case = Case(seed)
    words, ends = sequences(case, count), case.alphabet[:1].tolist()
    mine = ours.bad_words(words, ends)
    if mine is None:
        assert all(word in [[end] for end in ends] for word in words)
    else:
        case.check(mine, lambda _: theirs.NoBadWordsLogitsProcessor(words, ends))


@pytest.mark.parametrize("forbidden", [[[9]], [[1, 2], [3, 9]], [[9, 1]]])
def test_tokens_outside_of_the_vocabulary_are_refused(forbidden: list[list[int]]) -> None:
    processor = ours.bad_words(forbidden, [])
    assert processor is not None
    with pytest.raises(OptionError, match=r"Token 9 .* 9 tokens"):
        processor(np.zeros((1, 9), np.float32), History([[1]]))


@THOROUGH
@given(seed=seeds, token=st.integers(0, 7))
def test_forced_bos(seed: int, token: int) -> None:
    Case(seed).check(ours.ForcedBos(token), lambda _: theirs.ForcedBOSTokenLogitsProcessor(token))


@THOROUGH
@given(seed=seeds, ends=st.lists(st.integers(0, 7), min_size=1, max_size=3))
def test_forced_eos(seed: int, ends: list[int]) -> None:
    case = Case(seed)
    totals = [len(p) + int(case.random.integers(1, 14)) for p in case.prompts]
    case.check(
        ours.ForcedEos(totals, ends),
        lambda row: theirs.ForcedEOSTokenLogitsProcessor(totals[row], ends),
    )


@THOROUGH
@given(seed=seeds)
def test_remove_invalid(seed: int) -> None:
    case = Case(seed)
    for value in (np.nan, np.inf, -np.inf):
        case.scores[:, case.random.integers(0, case.vocab, 4)] = value
    case.check(ours.RemoveInvalid(), lambda _: theirs.InfNanRemoveLogitsProcessor())


@THOROUGH
@given(
    seed=seeds,
    start=st.integers(0, 8),
    factor=st.floats(0.5, 2.5),
    ends=st.sets(st.integers(0, 7), min_size=1),
)
def test_exponential_decay(seed: int, start: int, factor: float, ends: set[int]) -> None:
    case = Case(seed)
    case.check(
        ours.ExponentialDecay(start, factor, sorted(ends)),
        lambda row: theirs.ExponentialDecayLengthPenalty(
            (start, factor), sorted(ends), len(case.prompts[row])
        ),
    )


@THOROUGH
@given(seed=seeds, tokens=st.lists(st.integers(0, 500), max_size=5))
def test_suppress(seed: int, tokens: list[int]) -> None:
    Case(seed).check(ours.Suppress(tokens), lambda _: theirs.SuppressTokensLogitsProcessor(tokens))


@THOROUGH
@given(seed=seeds, tokens=st.lists(st.integers(0, 500), max_size=5), forced=st.booleans())
def test_begin_suppress(seed: int, tokens: list[int], forced: bool) -> None:
    case = Case(seed)

    def source(row: int) -> Any:
        begin = len(case.prompts[row])
        begin = begin if begin > 1 or not forced else begin + 1
        return theirs.SuppressTokensAtBeginLogitsProcessor(tokens, begin)

    case.check(ours.BeginSuppress(tokens, after_bos=forced), source)


WARPERS: Sequence[tuple[Any, Any, st.SearchStrategy[Any]]] = [
    (warpers.TopK, theirs.TopKLogitsWarper, st.integers(1, 500)),
    (warpers.TopP, theirs.TopPLogitsWarper, st.floats(0.01, 0.999)),
    (warpers.MinP, theirs.MinPLogitsWarper, st.floats(0.0, 1.0)),
    (warpers.Typical, theirs.TypicalLogitsWarper, st.floats(0.01, 0.99)),
    (warpers.Epsilon, theirs.EpsilonLogitsWarper, st.floats(1e-5, 0.3)),
    (warpers.Eta, theirs.EtaLogitsWarper, st.floats(1e-5, 0.3)),
]


@pytest.mark.parametrize(
    ("mine", "source", "values"), WARPERS, ids=lambda item: getattr(item, "__name__", "")
)
@settings(deadline=None, max_examples=80)
@given(data=st.data(), seed=seeds, keep=st.integers(1, 3))
def test_warpers(
    mine: Any,
    source: Any,
    values: st.SearchStrategy[Any],
    data: st.DataObject,
    seed: int,
    keep: int,
) -> None:
    # Under ties torch's order is not defined where a sort or a top-k of several decides.
    sorts = mine in (warpers.TopP, warpers.Typical) or (mine is warpers.MinP and keep > 1)
    case = Case(seed, ties=not sorts)
    value = data.draw(values)
    case.check(mine(value, keep), lambda _: source(value, min_tokens_to_keep=keep))


@THOROUGH
@given(seed=seeds, temperature=st.floats(0.05, 8.0))
def test_temperature(seed: int, temperature: float) -> None:
    Case(seed).check(
        warpers.Temperature(temperature), lambda _: theirs.TemperatureLogitsWarper(temperature)
    )


@THOROUGH
@given(seed=seeds)
def test_normalize_is_a_log_softmax(seed: int) -> None:
    case = Case(seed)
    found = case.scores.copy()
    ours.Normalize()(found, case.history())
    wanted = theirs.LogitNormalization()(None, torch.from_numpy(case.scores.copy())).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=4e-6)


def test_equals_at_the_edge_of_the_nucleus_leave_with_the_lowest_ids_first() -> None:
    scores = np.zeros((1, 4), np.float32)
    warpers.TopP(0.5)(scores, History([[0]]))
    assert np.isneginf(scores[0]).tolist() == [True, True, False, False]


def test_a_history_grows_and_follows_its_parents() -> None:
    history = History([[5], [6, 7]], room=1)
    for token in range(8, 12):
        history.append(np.array([token, token + 10]), np.array([1, token % 2]))
    assert history.row(0) == [5, 8, 9, 10, 11]
    assert history.row(1) == [6, 7, 19, 21]
    assert history.last(5).tolist() == [[5, 8, 9, 10, 11], [-1, 6, 7, 19, 21]]
    history.reorder(np.array([1, 1]))
    assert history.row(0) == history.row(1) == [6, 7, 19, 21]
    assert history.new_lengths.tolist() == [2, 2]
