from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from primelens import CaptionOptions, DecodingOptions, OptionError
from primelens.decoding.effective import Effective, describe_generation, resolve, unsupported
from primelens.manifest import Generation


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": True}, "whole number"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "must be a number"),
        ({"top_p": 1.5}, "at most 1"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"do_sample": "yes"}, "True or False"),
        ({"bad_words_ids": [[1], []]}, "empty sequence"),
        ({"bad_words_ids": [[-1]]}, "at least 0"),
        ({"suppress_tokens": 3}, "list of token ids"),
        ({"sequence_bias": [[1, 2]]}, "list of token ids"),
        ({"sequence_bias": [[[1], "x"]]}, "the bias 'x'"),
        ({"exponential_decay_length_penalty": 3}, r"\(start, factor\)"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"choices": []}, "choices is empty"),
        ({"choices": ["a"], "regex": "a"}, "choices and regex exclude"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_options_are_refused(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        DecodingOptions(**bad)


def test_lists_become_tuples() -> None:
    options = DecodingOptions(
        stop="x", bad_words_ids=[[1, 2]], forced_eos_token_id=5, sequence_bias={(1,): 2}
    )  # type: ignore[arg-type]
    assert (options.stop, options.bad_words_ids) == (("x",), ((1, 2),))
    assert (options.forced_eos_token_id, options.sequence_bias) == ((5,), (((1,), 2.0),))
    assert hash(options) == hash(DecodingOptions(
        stop=("x",), bad_words_ids=((1, 2),), forced_eos_token_id=(5,), sequence_bias=(((1,), 2.0),)
    ))  # fmt: skip


def test_something_else_than_decoding_options_is_refused() -> None:
    with pytest.raises(OptionError, match="must be DecodingOptions"):
        CaptionOptions(decoding={"num_beams": 3})  # type: ignore[arg-type]


def test_options_stand_over_settings_and_settings_over_defaults() -> None:
    settings = {
        "num_beams": 4,
        "length_penalty": 2.0,
        "stop_strings": ["."],
        "bad_words_ids": [[3]],
    }
    found = resolve(DecodingOptions(num_beams=2), settings, None)
    assert (found.num_beams, found.length_penalty, found.top_k) == (2, 2.0, 50)
    assert (found.stop, found.bad_words_ids) == ((".",), ((3,),))
    assert (
        resolve(DecodingOptions(ignore=("length_penalty",)), settings, None).length_penalty == 1.0
    )


def test_new_tokens_put_the_least_length_out_of_force() -> None:
    settings = {"min_length": 5, "min_new_tokens": 3}
    assert resolve(DecodingOptions(), settings, None).min_new_tokens == 3
    assert resolve(DecodingOptions(), settings, 0).min_new_tokens == 0
    assert resolve(DecodingOptions(), {"min_length": 5}, None).min_new_tokens is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (DecodingOptions(do_sample=True, num_beams=2), "exclude each other"),
        (DecodingOptions(num_return_sequences=2), "1 beam"),
        (DecodingOptions(num_beams=2, num_return_sequences=3), "2 beam"),
    ],
)
def test_contradictions_are_refused(options: DecodingOptions, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        resolve(options, {}, None)


def test_what_cannot_be_honoured_is_named_and_can_be_ignored() -> None:
    settings = {"penalty_alpha": 0.6, "num_beam_groups": 1, "watermarking_config": {"a": 1}}
    with pytest.raises(OptionError, match=r"penalty_alpha=0\.6, watermarking_config=.*ignore="):
        resolve(DecodingOptions(), settings, None)
    ignore = DecodingOptions(ignore=("penalty_alpha", "watermarking_config"))
    assert resolve(ignore, settings, None) == Effective()


def test_a_malformed_setting_is_the_checkpoints_fault() -> None:
    with pytest.raises(OptionError, match="generation_config is malformed: num_beams is 0"):
        resolve(DecodingOptions(), {"num_beams": 0}, None)


def test_transformers_defaults_ask_for_nothing_special() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    assert unsupported(defaults) == {}
    assert resolve(DecodingOptions(), defaults, None) == Effective()
    everything = {name: value for name, value in GenerationConfig().to_dict().items() if value}
    assert unsupported(everything) == {}


def test_what_a_head_does_is_described() -> None:
    generation = Generation((1,), (2,), 0, 20, {"num_beams": 3, "penalty_alpha": 0.5})
    assert describe_generation(generation) == {
        "strategy": "beam search",
        "num_beams": 3,
        "max_new_tokens": 20,
        "start_tokens": (1,),
        "eos_tokens": (2,),
        "pad_token": 0,
        "unsupported": {"penalty_alpha": 0.5},
    }
