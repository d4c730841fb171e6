"""Greedy decoding under processors and stop strings, as ``generate`` does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens import OptionError
from primelens.decoding import processors
from primelens.decoding.search import Controls, Greedy, Limits, top_logprobs

from .tables import generate, run, table

VOCAB = 50


class EndsWith:
    """A stop test on ids: the sequence ends with these two."""

    window = 2

    def __init__(self, *pair: int) -> None:
        self._pair = list(pair)

    def __call__(self, tokens: Any) -> bool:
        return list(tokens) == self._pair


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(0, 3),
    penalty=st.sampled_from([1.0, 1.5]),
    longest=st.integers(1, 12),
)
def test_greedy_equals_generate(seed: int, size: int, penalty: float, longest: int) -> None:
    eos, prompts = [47, 48], [[1, 5], [2, 5], [3, 5]]
    logits = table(seed, VOCAB, eos)
    chain: list[processors.Processor] = []
    if penalty != 1.0:
        chain.append(processors.RepetitionPenalty(penalty))
    if size:
        chain.append(processors.NoRepeatNGram(size))
    output = generate(
        logits, VOCAB, prompts, max_new_tokens=longest, eos_token_id=eos, pad_token_id=49,
        repetition_penalty=penalty, no_repeat_ngram_size=size, do_sample=False,
    )  # fmt: skip
    limits = Limits((47, 48), 49, (longest,) * 3)
    results = run(logits, VOCAB, Greedy(prompts, limits, Controls(tuple(chain))), 3)
    own = torch.log_softmax(torch.stack(output.logits), dim=-1)
    for row, result in enumerate(results):
        count = len(result.tokens)
        assert output.sequences[row, 2 : 2 + count].tolist() == result.tokens
        assert (output.sequences[row, 2 + count :] == 49).all()
        assert result.finish_reason == ("stop" if result.tokens[-1] in eos else "length")
        exact = [float(own[i, row, token]) for i, token in enumerate(result.tokens)]
        assert result.logprobs == pytest.approx(exact, abs=1e-5)


def test_a_stop_test_ends_a_row_and_its_token_is_kept() -> None:
    logits = table(3, VOCAB)
    limits = Limits((), 0, (9, 9))
    free = run(logits, VOCAB, Greedy([[1], [2]], limits), 2)
    stop = EndsWith(*free[0].tokens[3:5])
    results = run(logits, VOCAB, Greedy([[1], [2]], limits, Controls(stop=stop)), 2)
    assert (results[0].tokens, results[0].finish_reason) == (free[0].tokens[:5], "stop")
    assert (results[1].tokens, results[1].finish_reason) == (free[1].tokens, "length")


def test_a_stop_test_sees_the_prompt() -> None:
    logits = table(4, VOCAB)
    first = run(logits, VOCAB, Greedy([[7]], Limits((), 0, (1,))), 1)[0].tokens[0]
    controls = Controls(stop=EndsWith(7, first))
    assert run(logits, VOCAB, Greedy([[7]], Limits((), 0, (5,)), controls), 1)[0].tokens == [first]


def test_alternatives_are_the_models_own_whatever_is_forbidden() -> None:
    logits = table(5, VOCAB)
    controls = Controls((processors.Suppress(range(10)),), top_logprobs=4)
    result = run(logits, VOCAB, Greedy([[1]], Limits((), 0, (6,)), controls), 1)[0]
    history = [1]
    for token, logprob, found in zip(
        result.tokens, result.logprobs, result.alternatives, strict=True
    ):
        exact = torch.log_softmax(torch.from_numpy(logits(history)).double(), dim=-1)
        order = exact.argsort(descending=True)[:4].tolist()
        assert [each for each, _ in found] == order
        assert [value for _, value in found] == pytest.approx(exact[order].tolist(), abs=1e-5)
        assert logprob == pytest.approx(float(exact[token]), abs=1e-5)
        assert token >= 10
        history.append(token)


def test_there_may_be_fewer_alternatives_than_asked_for() -> None:
    found = top_logprobs(np.array([0.0, 1.0], np.float32), 5)
    assert [token for token, _ in found] == [1, 0]
    assert sum(np.exp(value) for _, value in found) == pytest.approx(1)


def test_nothing_to_choose_is_an_error() -> None:
    controls = Controls((processors.Suppress(range(VOCAB)),))
    with pytest.raises(OptionError, match="no token to choose at place 1 "):
        run(table(6, VOCAB), VOCAB, Greedy([[1]], Limits((), 0, (6,)), controls), 1)
