"""Puts a search together from what decoding is to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from primelens.decoding import processors as p
from primelens.decoding import warpers as w
from primelens.decoding.beam import BeamRules, BeamSearch
from primelens.decoding.constraint import Constraint, OnlyAllowed
from primelens.decoding.effective import Effective
from primelens.decoding.sampling import Sampling, stream_of
from primelens.decoding.search import Controls, Greedy, Limits, Search, StopTest

__all__ = ["Request", "build_search", "chain"]


@dataclass(frozen=True)
class Request:
    """What is decoded.

    Attributes:
        prompts: the ids that each picture's sequences start with.
        pictures: each picture's digest, which keys what is drawn for it.
        limits: when sequences end; one entry of ``max_new_tokens`` per picture.
        bad_words: sequences of ids that must not occur.
        stop: ends sequences by their text.
        constraint: says what may follow.
    """

    prompts: Sequence[Sequence[int]]
    pictures: Sequence[str]
    limits: Limits
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop: StopTest | None = None
    constraint: Constraint | None = None


def build_search(wanted: Effective, request: Request) -> Search:
    """The search that ``wanted`` asks for, over ``wanted.rows_per_picture`` rows per picture."""
    processors = (*chain(wanted, request), *(warpers(wanted) if wanted.do_sample else ()))
    if wanted.renormalize_logits:
        processors = (*processors, p.Normalize())
    controls = Controls(processors, request.stop, wanted.top_logprobs)
    if wanted.strategy == "beam search":
        rules = BeamRules(
            wanted.num_beams,
            wanted.length_penalty,
            wanted.early_stopping,
            wanted.num_return_sequences,
        )
        return BeamSearch(request.prompts, request.limits, rules, controls)
    if wanted.strategy == "greedy":
        return Greedy(request.prompts, request.limits, controls)
    count, limits = wanted.num_return_sequences, request.limits
    return Sampling(
        [prompt for prompt in request.prompts for _ in range(count)],
        Limits(
            limits.eos_tokens,
            limits.pad_token,
            tuple(longest for longest in limits.max_new_tokens for _ in range(count)),
        ),
        [stream_of(wanted.seed, digest, n) for digest in request.pictures for n in range(count)],
        controls,
        count,
    )


def chain(wanted: Effective, request: Request) -> tuple[p.Processor, ...]:
    """The processors in the order of transformers 5.23 (``_get_logits_processor``)."""
    eos = request.limits.eos_tokens
    found: list[p.Processor | None] = []
    if wanted.sequence_bias:
        found.append(p.SequenceBias(dict(wanted.sequence_bias)))
    if wanted.repetition_penalty != 1.0:
        found.append(p.RepetitionPenalty(wanted.repetition_penalty))
    if wanted.no_repeat_ngram_size:
        found.append(p.NoRepeatNGram(wanted.no_repeat_ngram_size))
    if forbidden := (*wanted.bad_words_ids, *request.bad_words):
        found.append(p.bad_words(forbidden, eos))
    if eos and wanted.min_new_tokens is None and wanted.min_length:
        found.append(p.MinLength(wanted.min_length, eos))
    if eos and wanted.min_new_tokens:
        found.append(p.MinNewTokens(wanted.min_new_tokens, eos))
    if request.constraint is not None:
        found.append(OnlyAllowed(request.constraint))
    found += _forced(wanted, request)
    if wanted.remove_invalid_values:
        found.append(p.RemoveInvalid())
    if eos and wanted.exponential_decay_length_penalty is not None:
        found.append(p.ExponentialDecay(*wanted.exponential_decay_length_penalty, eos))
    if wanted.suppress_tokens:
        found.append(p.Suppress(wanted.suppress_tokens))
    if wanted.begin_suppress_tokens:
        after_bos = wanted.forced_bos_token_id is not None
        found.append(p.BeginSuppress(wanted.begin_suppress_tokens, after_bos=after_bos))
    return tuple(processor for processor in found if processor is not None)


def _forced(wanted: Effective, request: Request) -> list[p.Processor]:
    found: list[p.Processor] = []
    if wanted.forced_bos_token_id is not None:
        found.append(p.ForcedBos(wanted.forced_bos_token_id))
    if wanted.forced_eos_token_id:
        totals = [
            len(prompt) + longest
            for prompt, longest in zip(request.prompts, request.limits.max_new_tokens, strict=True)
            for _ in range(wanted.rows_per_picture)
        ]
        found.append(p.ForcedEos(totals, wanted.forced_eos_token_id))
    return found


def warpers(wanted: Effective) -> tuple[p.Processor, ...]:
    """What shapes the distribution that is drawn from, in transformers' order."""
    found: list[p.Processor] = []
    if wanted.temperature != 1.0:
        found.append(w.Temperature(wanted.temperature))
    if wanted.top_k:
        found.append(w.TopK(wanted.top_k))
    if wanted.top_p < 1.0:
        found.append(w.TopP(wanted.top_p))
    if wanted.min_p is not None:
        found.append(w.MinP(wanted.min_p))
    if wanted.typical_p < 1.0:
        found.append(w.Typical(wanted.typical_p))
    if 0.0 < wanted.epsilon_cutoff < 1.0:
        found.append(w.Epsilon(wanted.epsilon_cutoff))
    if 0.0 < wanted.eta_cutoff < 1.0:
        found.append(w.Eta(wanted.eta_cutoff))
    return tuple(found)
