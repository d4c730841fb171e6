"""What decoding really does: the caller's options over the checkpoint's generation_config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from primelens.decoding.options import DecodingOptions, Ids
from primelens.errors import OptionError
from primelens.manifest import Generation

__all__ = ["Effective", "describe_generation", "resolve", "unsupported"]

# Settings of transformers that are not honoured, with the values at which they do nothing there.
# Every name that is neither here nor an option is refused too.
_IDLE: dict[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "diversity_penalty": (0.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1,),
    "is_assistant": (False,),
    "low_memory": (False,),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant", "heuristic"),
    "num_beam_groups": (1,),
    "target_lookbehind": (10,),
    "token_healing": (False,),
    "use_mtp": (False,),
}
# Resolved when the bundle was made, or without influence on the answer.
_ELSEWHERE = {
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "eos_token_id",
    "max_cache_len",
    "max_length",
    "max_new_tokens",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
}
_RENAMED = {"stop_strings": "stop"}
_OURS = {"seed", "choices", "regex", "json_schema", "bad_words", "top_logprobs", "ignore"}
_SETTABLE = {f.name for f in fields(DecodingOptions)} - _OURS - {"stop"} | {"stop_strings"}


@dataclass(frozen=True)
class Effective:
    """Options with nothing left open; the attributes are those of `DecodingOptions`, plus
    ``min_new_tokens``, whose None differs from 0: any number puts ``min_length`` out of force.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int | None = None
    bad_words_ids: tuple[Ids, ...] = ()
    bad_words: tuple[str, ...] = ()
    sequence_bias: tuple[tuple[Ids, float], ...] = ()
    suppress_tokens: Ids = ()
    begin_suppress_tokens: Ids = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: Ids = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    regex: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        beams, wanted = self.num_beams, self.num_return_sequences
        if self.do_sample and beams > 1:
            raise OptionError(
                f"do_sample and num_beams {beams} exclude each other here.",
                remedy="Set num_beams=1 to sample, or do_sample=False for a beam search.",
            )
        if wanted > beams and not self.do_sample:
            raise OptionError(
                f"num_return_sequences is {wanted}; a search with {beams} beam(s) gives {beams}.",
                remedy="Raise num_beams, or set do_sample=True.",
            )

    @property
    def strategy(self) -> Literal["greedy", "sampling", "beam search"]:
        """What kind of search this is."""
        if self.do_sample:
            return "sampling"
        return "beam search" if self.num_beams > 1 else "greedy"

    @property
    def rows_per_picture(self) -> int:
        """Sequences that run side by side for each picture."""
        return self.num_return_sequences if self.do_sample else self.num_beams

    def as_dict(self) -> dict[str, Any]:
        """The strategy, and every setting that differs from transformers' default."""
        chosen: dict[str, Any] = {"strategy": self.strategy}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                chosen[field.name] = value
        return chosen


def unsupported(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a generation_config that primelens does not honour."""
    return {
        name: value
        for name, value in settings.items()
        if value is not None
        and name not in _SETTABLE | _ELSEWHERE | {"min_new_tokens"}
        and value not in _IDLE.get(name, ())
    }


def resolve(
    options: DecodingOptions, settings: Mapping[str, Any], min_new_tokens: int | None
) -> Effective:
    """Options over settings over transformers' defaults.

    Args:
        options: the caller's.
        settings: the checkpoint's (`primelens.manifest.Generation.settings`).
        min_new_tokens: the caller's (`CaptionOptions.min_new_tokens`).

    Raises:
        OptionError: a setting cannot be honoured or is malformed, or options contradict each other.
    """
    settings = {k: v for k, v in settings.items() if v is not None and k not in options.ignore}
    refused = unsupported(settings)
    if refused:
        said = ", ".join(f"{name}={value!r}" for name, value in refused.items())
        raise OptionError(
            f"The checkpoint's generation_config asks for {said}, which primelens cannot honour.",
            remedy=f"Leave it out of account with DecodingOptions(ignore={tuple(refused)!r}).",
        )
    known = {_RENAMED.get(k, k): v for k, v in settings.items() if k in _SETTABLE}
    try:
        defaults = DecodingOptions(**known)
    except OptionError as error:
        raise OptionError(
            f"The checkpoint's generation_config is malformed: {error.message}",
            remedy="Leave the setting out of account with DecodingOptions(ignore=...).",
        ) from error
    chosen: dict[str, Any] = {}
    for field in fields(DecodingOptions):
        value = getattr(options, field.name)
        value = getattr(defaults, field.name) if value is None else value
        if value is not None and field.name != "ignore":
            chosen[field.name] = value
    if min_new_tokens is None:
        min_new_tokens = settings.get("min_new_tokens")
    return Effective(**chosen, min_new_tokens=min_new_tokens)


def describe_generation(generation: Generation) -> dict[str, Any]:
    """What a head does when nothing is asked for: strategy, limits, tokens, every setting that is
    not transformers' default, and under ``unsupported`` those that decoding would refuse.
    """
    refused = unsupported(generation.settings)
    effective = resolve(DecodingOptions(ignore=tuple(refused)), generation.settings, None)
    found = effective.as_dict() | {
        "max_new_tokens": generation.max_new_tokens,
        "start_tokens": generation.start_tokens,
        "eos_tokens": generation.eos_tokens,
        "pad_token": generation.pad_token,
    }
    return found | ({"unsupported": refused} if refused else {})
