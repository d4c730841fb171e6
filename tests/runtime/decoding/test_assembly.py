"""The whole chain of processors equals the one that transformers assembles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from primelens import DecodingOptions
from primelens.decoding.assembly import Request, build_search, chain, warpers
from primelens.decoding.beam import BeamSearch
from primelens.decoding.constraint import Choices
from primelens.decoding.effective import resolve
from primelens.decoding.history import History
from primelens.decoding.sampling import Sampling
from primelens.decoding.search import Greedy, Limits

from .tables import TableModel, table

VOCAB, LONGEST = 40, 9
EOS = (38, 39)
MODEL = TableModel(table(0, VOCAB), VOCAB)
IDS = st.lists(st.integers(0, 37), min_size=1, max_size=3)
OTHERS = st.lists(st.integers(10, 37), min_size=1, max_size=3)  # not what may be forced


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


# A mass within rounding of 1 is decided by the order in which probabilities are summed.
MASS = st.one_of(st.floats(0.2, 0.999), st.just(1.0))

SETTINGS = st.fixed_dictionaries(
    {
        "sequence_bias": some(
            st.lists(st.tuples(IDS, st.floats(-3, 3)), min_size=1, max_size=4).map(
                lambda pairs: [[ids, bias] for ids, bias in pairs]
            )
        ),
        "repetition_penalty": some(st.floats(0.5, 2.0)),
        "no_repeat_ngram_size": some(st.integers(0, 3)),
        "bad_words_ids": some(st.lists(IDS, min_size=1, max_size=5)),
        "min_length": some(st.integers(0, 8)),
        "min_new_tokens": some(st.integers(0, 6)),
        "forced_bos_token_id": some(st.integers(0, 9)),
        "forced_eos_token_id": some(st.sampled_from([38, [38, 39]])),
        "remove_invalid_values": some(st.booleans()),
        "exponential_decay_length_penalty": some(st.tuples(st.integers(0, 4), st.floats(1.0, 1.5))),
        "suppress_tokens": some(OTHERS),
        "begin_suppress_tokens": some(OTHERS),
        "do_sample": some(st.booleans()),
        "temperature": some(st.floats(0.2, 3.0)),
        "top_k": some(st.integers(0, 60)),
        "top_p": some(MASS),
        "min_p": some(st.floats(0.0, 0.5)),
        "typical_p": some(MASS),
        "epsilon_cutoff": some(st.floats(0.0, 0.05)),
        "eta_cutoff": some(st.floats(0.0, 0.05)),
    }
).filter(
    # The one makes an infinite score the largest float32, the other multiplies it: transformers
    # then fails on a distribution that holds not-a-number.
    lambda chosen: (
        not (chosen["remove_invalid_values"] and chosen["exponential_decay_length_penalty"])
    )
)


def theirs(chosen: dict[str, Any], prompt: int) -> Any:
    """transformers' processors for a prompt of that many tokens."""
    config = GenerationConfig(**{k: v for k, v in chosen.items() if v is not None})
    for name, value in GenerationConfig._get_default_generation_params().items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    config.max_length = prompt + LONGEST
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + prompt
    config._eos_token_tensor = torch.tensor(EOS)
    return MODEL._get_logits_processor(config, input_ids_seq_length=prompt)


@settings(deadline=None, max_examples=40)
@given(chosen=SETTINGS, seed=st.integers(0, 2**32 - 1))
def test_chains_are_equal(chosen: dict[str, Any], seed: int) -> None:
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, 37, n).tolist() for n in random.integers(1, 4, 3)]
    effective = resolve(DecodingOptions(), {k: v for k, v in chosen.items() if v is not None}, None)
    request = Request(prompts, ["a", "b", "c"], Limits(EOS, 0, (LONGEST,) * 3))
    mine = (*chain(effective, request), *(warpers(effective) if effective.do_sample else ()))
    history = History(prompts)
    for _ in range(int(random.integers(0, LONGEST))):
        history.append(random.choice([1, 2, 3, 37], 3), np.ones(3))
    scores = (random.standard_normal((3, VOCAB)) * 3).astype(np.float32)
    wanted = np.stack(
        [
            theirs(chosen, len(prompt))(
                torch.tensor([history.row(row)]), torch.from_numpy(scores[row : row + 1].copy())
            ).numpy()[0]
            for row, prompt in enumerate(prompts)
        ]
    )
    found = scores.copy()
    for processor in mine:
        processor(found, history)
    np.testing.assert_array_equal(found, wanted)


def test_the_constraint_stands_between_the_least_length_and_the_forced_tokens() -> None:
    options = DecodingOptions(min_length=3, forced_eos_token_id=(38,))
    request = Request([[1]], ["a"], Limits(EOS, 0, (5,)), constraint=Choices([[4]], EOS))
    names = [type(p).__name__ for p in chain(resolve(options, {}, None), request)]
    assert names == ["MinLength", "OnlyAllowed", "ForcedEos"]


def test_the_strategy_follows_the_options() -> None:
    request = Request([[1], [2]], ["a", "b"], Limits(EOS, 0, (5, 6)))
    plain = build_search(resolve(DecodingOptions(), {}, None), request)
    assert type(plain) is Greedy
    assert plain.begin().tokens.tolist() == [[1], [2]]
    drawn = build_search(
        resolve(DecodingOptions(do_sample=True, num_return_sequences=2), {}, None), request
    )
    assert type(drawn) is Sampling
    assert drawn.begin().tokens.tolist() == [[1], [1], [2], [2]]
    beams = build_search(resolve(DecodingOptions(), {"num_beams": 3}, None), request)
    assert type(beams) is BeamSearch
    assert beams.begin().tokens.tolist() == [[1], [1], [1], [2], [2], [2]]
