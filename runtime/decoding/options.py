"""What a caller may ask of decoding, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from primelens.errors import OptionError

__all__ = ["DecodingOptions"]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class DecodingOptions:
    """How tokens are chosen. None keeps what the source checkpoint's generation_config says.

    Names, meanings and, where the checkpoint says nothing, defaults are those of transformers'
    ``GenerationConfig``, but for `seed`, `stop` (its ``stop_strings``) and what follows `stop`.
    Lists are accepted wherever a tuple is named.

    Attributes:
        num_beams: beams per picture; 1 is no beam search.
        length_penalty: power of the length by which a finished beam's log-probability is divided.
        early_stopping: True, False or "never": when a beam search ends.
        num_return_sequences: captions per picture; needs as many beams, or sampling.
        do_sample: draw tokens instead of taking the most probable ones.
        temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff: shape what is drawn
            from; without ``do_sample`` they do nothing.
        seed: same seed, same picture, same options: same captions, whatever else is in the batch.
        repetition_penalty: above 1 makes tokens that occurred less likely.
        no_repeat_ngram_size: no sequence of that many tokens occurs twice; 0 is off.
        min_length: no end before that many tokens, the start tokens and the prompt counted.
            `CaptionOptions.min_new_tokens` replaces it.
        bad_words_ids: sequences of ids that must not occur.
        bad_words: words that must not occur, as the tokenizer writes them at the beginning of a
            text and after a space.
        sequence_bias: ((ids, bias), ...): added to the score of a sequence's last token.
        suppress_tokens, begin_suppress_tokens: ids that are never chosen, never chosen first.
        forced_bos_token_id, forced_eos_token_id: what follows a lone start token; what stands in
            the last place where the length limit is reached.
        exponential_decay_length_penalty: (start, factor): makes the end more and more likely.
        remove_invalid_values: NaN and infinite scores become finite.
        renormalize_logits: log-softmax after all processors.
        stop: decoding ends with the token that completes one of these strings; it is kept.
        choices: the caption is one of these.
        regex: the caption matches this regular expression as a whole; needs primelens[constrain].
        json_schema: the caption is JSON that fits this schema; needs primelens[constrain].
        top_logprobs: alternatives recorded per token.
        ignore: names of settings of the checkpoint's generation_config to leave out of account.

    Raises:
        OptionError: a value is out of range, or two exclude each other.
    """

    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    num_return_sequences: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    seed: int = 0
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_length: int | None = None
    bad_words_ids: tuple[Ids, ...] | None = None
    bad_words: tuple[str, ...] = ()
    sequence_bias: tuple[tuple[Ids, float], ...] | None = None
    suppress_tokens: Ids | None = None
    begin_suppress_tokens: Ids | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: Ids | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    stop: tuple[str, ...] | None = None
    choices: tuple[str, ...] | None = None
    regex: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    top_logprobs: int = 0
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least, most in _NUMBERS:
            _number(name, getattr(self, name), least, most)
        for name, least in _WHOLE:
            _whole(name, getattr(self, name), least)
        for name in ("do_sample", "remove_invalid_values", "renormalize_logits"):
            if getattr(self, name) not in (None, True, False):
                raise OptionError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        if self.early_stopping not in (None, True, False, "never"):
            raise OptionError(
                f"early_stopping is {self.early_stopping!r}; it must be True, False or 'never'."
            )
        self._tidy_ids()
        for name in ("bad_words", "stop", "choices", "ignore"):
            self._set(name, _texts(name, getattr(self, name)))
        wanted = [n for n in ("choices", "regex", "json_schema") if getattr(self, n) is not None]
        if len(wanted) > 1:
            raise OptionError(f"{' and '.join(wanted)} exclude each other.", remedy="Give one.")

    def _tidy_ids(self) -> None:
        """Lists become tuples, so that options are hashable and cannot change."""
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            self._set(name, _ids(name, getattr(self, name)))
        forced = self.forced_eos_token_id
        self._set("forced_eos_token_id", _ids("forced_eos_token_id", forced, single=True))
        if self.bad_words_ids is not None:
            words = tuple(_ids("bad_words_ids", word) for word in self.bad_words_ids)
            if not all(words):
                raise OptionError("bad_words_ids holds an empty sequence.")
            self._set("bad_words_ids", words)
        if self.sequence_bias is not None:
            self._set("sequence_bias", _biases(self.sequence_bias))
        if self.exponential_decay_length_penalty is not None:
            decay = _decay(self.exponential_decay_length_penalty)
            self._set("exponential_decay_length_penalty", decay)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


# name, least, most
_NUMBERS: tuple[tuple[str, float | None, float | None], ...] = (
    ("length_penalty", None, None),
    ("temperature", 1e-6, None),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("typical_p", 1e-6, 1),
    ("epsilon_cutoff", 0, 1),
    ("eta_cutoff", 0, 1),
    ("repetition_penalty", 1e-6, None),
)
_WHOLE = (
    ("num_beams", 1),
    ("num_return_sequences", 1),
    ("top_k", 0),
    ("seed", 0),
    ("no_repeat_ngram_size", 0),
    ("min_length", 0),
    ("forced_bos_token_id", 0),
    ("top_logprobs", 0),
)


def _number(name: str, value: object, least: float | None, most: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise OptionError(f"{name} is {value!r}; it must be a number.")
    if least is not None and value < least:
        raise OptionError(f"{name} is {value}; it must be at least {least}.")
    if most is not None and value > most:
        raise OptionError(f"{name} is {value}; it must be at most {most}.")


def _whole(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} is {value!r}; it must be a whole number.")
    if value < least:
        raise OptionError(f"{name} is {value}; it must be at least {least}.")


def _ids(name: str, value: object, *, single: bool = False) -> Ids | None:
    if value is None:
        return None
    if single and isinstance(value, int):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        raise OptionError(f"{name} is {value!r}; it must be a list of token ids.")
    for token in value:
        _whole(f"a token of {name}", token, 0)
    return tuple(value)


def _texts(name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) and name == "stop":
        value = (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
        raise OptionError(f"{name} is {value!r}; it must be a list of strings, none of them empty.")
    if name == "choices" and not value:
        raise OptionError("choices is empty.", remedy="Give at least one string.")
    return tuple(value)


def _decay(value: object) -> tuple[int, float]:
    name = "exponential_decay_length_penalty"
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise OptionError(f"{name} is {value!r}; it must be (start, factor).")
    _whole(f"{name}'s start", value[0], 0)
    _number(f"{name}'s factor", value[1], 0, None)
    return value[0], float(value[1])


def _biases(value: object) -> tuple[tuple[Ids, float], ...]:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or not pairs:
        raise OptionError(f"sequence_bias is {value!r}; it must be a list of (ids, bias).")
    found = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise OptionError(f"sequence_bias holds {pair!r}, which is no (ids, bias).")
        sequence = _ids("sequence_bias", pair[0])
        if not sequence:
            raise OptionError("sequence_bias holds an empty sequence.")
        if isinstance(pair[1], bool) or not isinstance(pair[1], (int, float)):
            raise OptionError(f"sequence_bias holds the bias {pair[1]!r}; it must be a number.")
        found.append((sequence, float(pair[1])))
    return tuple(found)
