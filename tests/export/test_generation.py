"""Resolved decoding defaults, against what transformers' ``generate`` does with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from primelens.errors import CheckpointError
from primelens.export.generation import plain_generation, resolve_generation, settings_gaps
from primelens.export.reference_works import model_of

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")


@pytest.fixture(scope="module")
def shared() -> Any:
    return model_of("tiny-vitgpt2")


@pytest.fixture
def model(shared: Any) -> Iterator[Any]:
    before = shared.generation_config
    yield shared
    shared.generation_config = before


def configured(model: Any, **settings: Any) -> Any:
    base: dict[str, Any] = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model.generation_config = GenerationConfig(**{**base, **settings})
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_length": 9},
        {"max_new_tokens": 7},
        {"max_new_tokens": 7, "max_length": 30},
        {"eos_token_id": None},
    ],
)
def test_the_default_length_is_generates(model: Any, settings: dict[str, Any]) -> None:
    configured(model, **settings)
    generation = resolve_generation(model)
    never = {"suppress_tokens": list(generation.eos_tokens)} if generation.eos_tokens else {}
    row = model.generate(pixel_values=torch.ones(1, 3, 32, 32), do_sample=False, **never)[0]
    assert row[0] == generation.start_tokens[0]
    assert len(row) - 1 == generation.max_new_tokens


def test_special_tokens_fall_back_as_in_generate(model: Any) -> None:
    settings = {"decoder_start_token_id": None, "bos_token_id": 5, "eos_token_id": [7, 8]}
    generation = resolve_generation(configured(model, pad_token_id=None, **settings))
    assert generation.start_tokens == (5,)
    assert generation.eos_tokens == (7, 8)
    assert generation.pad_token == 7
    row = model.generate(pixel_values=torch.ones(1, 3, 32, 32), do_sample=False)[0]
    assert row[0] == 5


def test_without_a_start_token_it_says_what_to_set(model: Any) -> None:
    configured(model, decoder_start_token_id=None)
    with pytest.raises(CheckpointError, match=r"decoder_start_token_id.*generation_config\.json"):
        resolve_generation(model)


def test_settings_are_kept_where_they_differ_from_the_default(model: Any) -> None:
    settings = {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 1.0, "use_cache": True}
    generation = resolve_generation(configured(model, **settings))
    assert generation.settings == {"num_beams": 4, "no_repeat_ngram_size": 3}
    assert settings_gaps(generation) == []


def test_what_decoding_would_refuse_is_a_gap(model: Any) -> None:
    generation = resolve_generation(configured(model, encoder_no_repeat_ngram_size=2))
    (gap,) = settings_gaps(generation)
    assert "encoder_no_repeat_ngram_size is 2" in gap


def test_plain_generation_keeps_the_special_tokens_only(model: Any) -> None:
    configured(model, num_beams=3, eos_token_id=[3, 4])
    before = model.generation_config
    with plain_generation(model):
        assert model.generation_config.eos_token_id == [3, 4]
        assert not model.generation_config.num_beams
    assert model.generation_config is before
