"""BLIP-2 with T5: mutations of its exports are caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from primelens.errors import GateError
from primelens.export.bundle_writer import write_draft
from primelens.export.decoder_graph import build_decoder
from primelens.export.decoder_plan import RelativeBias, Stack
from primelens.export.draft import Draft
from primelens.export.pipeline import prove
from primelens.export.prefix_graph import build_projector
from primelens.export.quantise import INT8
from primelens.export.question_graph import PICTURE, build_question_encoder, read_by
from primelens.export.registry import Prefix
from primelens.export.work import find_work

from .conftest import OPTIONS, Work
from .mutation_tables import cases, counting
from .mutations import (
    VIT,
    Mutation,
    Table,
    at,
    borrowed_cross,
    copy_of,
    in_attributes,
    in_generation,
    in_input,
    minus_one,
    next_image,
    other_gelu,
    rolled,
    swapped_cross,
    swapped_layers,
    times,
)
from .t5_works import HEAD, NAMES, TAP, gate, head_of

_replace: Any = dataclasses.replace

Change = Callable[[Any], Any]


def plan(change: Change) -> Mutation:
    """Build decoder and encoder (which makes keys and values) from a changed decoder."""

    def mutate(draft: Draft, work: Work) -> None:
        head = head_of(work)
        changed = change(head.plan)
        draft.graphs[f"{HEAD}.decoder"] = build_decoder(changed, ragged_cross=True)
        draft.graphs[f"{HEAD}.question"] = build_question_encoder(
            head.question.stack, read_by(changed), changed.heads, head.prefix.length, before=True
        )

    return mutate


def asker(change: Change) -> Mutation:
    """Build the encoder from a changed one."""

    def mutate(draft: Draft, work: Work) -> None:
        head = head_of(work)
        draft.graphs[f"{HEAD}.question"] = build_question_encoder(
            change(head.question.stack),
            read_by(head.plan),
            head.plan.heads,
            head.prefix.length,
            before=True,
        )

    return mutate


def in_layers(index: int, change: Change) -> Change:
    def apply(stack: Stack) -> Any:
        layers = list(stack.layers)
        layers[index] = change(layers[index])
        return _replace(stack, layers=tuple(layers))

    return apply


def projector(change: Callable[[torch.nn.Module], torch.nn.Module]) -> Mutation:
    def mutate(draft: Draft, work: Work) -> None:
        prefix: Prefix = head_of(work).prefix
        draft.graphs[f"{HEAD}.connector"] = build_projector(
            _replace(prefix, module=change(prefix.module)),
            TAP,
            draft.tower.taps[TAP].shape,
            PICTURE,
        )

    return mutate


class _Then(torch.nn.Module):
    """A module, and what is done to its output."""

    def __init__(self, module: torch.nn.Module, by: Change) -> None:
        super().__init__()
        self.module, self.by = module, by

    def forward(self, states: torch.Tensor) -> Any:
        return self.by(self.module(states))


def question(**changes: Any) -> Mutation:
    def mutate(draft: Draft, work: Work) -> None:
        part = _replace(draft.heads[HEAD].question, **changes)
        draft.heads[HEAD] = _replace(draft.heads[HEAD], question=part)

    return mutate


def nearer(relative: RelativeBias) -> Any:
    """Distances are cut off at half the reach."""
    half = relative.zero // 2
    end = len(relative.table) if len(relative.table) == relative.zero + 1 else -half
    return _replace(relative, table=relative.table[half:end].copy(), zero=relative.zero - half)


def mirrored(relative: RelativeBias) -> Any:
    """Before and behind change places."""
    return _replace(relative, table=relative.table[::-1].copy())


def tables_swapped(draft: Draft, work: Work) -> None:
    """Encoder and decoder have each other's bias, as far as both know the distances."""
    head = head_of(work)
    ours, theirs = head.plan.relative, head.question.stack.relative
    known = ours.zero + 1
    table = np.concatenate([ours.table, theirs.table[known:]])
    stack = _replace(head.question.stack, relative=_replace(theirs, table=table))
    decoder = _replace(head.plan, relative=_replace(ours, table=theirs.table[:known].copy()))
    draft.graphs[f"{HEAD}.decoder"] = build_decoder(decoder, ragged_cross=True)
    draft.graphs[f"{HEAD}.question"] = build_question_encoder(
        stack, read_by(decoder), decoder.heads, head.prefix.length, before=True
    )


def buckets_of_the_encoder(draft: Draft, work: Work) -> None:
    """The decoder's own values, in buckets that keep room for what comes behind."""
    source = work.checkpoint.model.language_model.decoder.block[0].layer[0].SelfAttention
    furthest = source.relative_attention_max_distance
    buckets = source._relative_position_bucket(
        torch.arange(-furthest, 1),
        bidirectional=True,
        num_buckets=source.relative_attention_num_buckets,
        max_distance=furthest,
    )
    table = source.relative_attention_bias.weight.detach().numpy()[buckets.numpy()]
    plan(at("relative", "table", by=lambda _: table))(draft, work)


def picture_behind(draft: Draft, work: Work) -> None:
    """The prompt stands before the picture."""
    model = draft.graphs[f"{HEAD}.question"] = copy_of(draft.graphs[f"{HEAD}.question"])
    (joined,) = [n for n in model.graph if n.outputs[0].name == "stream"]
    picture, text = joined.inputs
    joined.replace_input_with(0, text)
    joined.replace_input_with(1, picture)


def all_count(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The mask leaves nothing out of a shortest question."""
    return counting(graph, value, 24 if value.name == "cross_lengths" else 16)


def gate_and_up_swapped(block: Any) -> Any:
    return _replace(block, gate=block.up, up=block.gate)


NORM = ("self_attention", "norm")
T5: Table = {
    "relative bias dropped": plan(at("relative", "table", by=times(0))),
    "bucket one late": plan(at("relative", "table", by=rolled(1))),
    "bucket one early": plan(at("relative", "table", by=rolled(-1))),
    "distances cut off": plan(at("relative", by=nearer)),
    "buckets of the encoder": buckets_of_the_encoder,
    "encoder's bias dropped": asker(at("relative", "table", by=times(0))),
    "encoder's bucket one late": asker(at("relative", "table", by=rolled(1))),
    "encoder's distances cut off": asker(at("relative", by=nearer)),
    "encoder's before and behind": asker(at("relative", by=mirrored)),
    "tables swapped": tables_swapped,
    "heads of the bias": plan(at("relative", "table", by=lambda t: np.roll(t, 1, axis=1))),
    "scores scaled": plan(in_layers(0, at("self_attention", "scale", by=times(24**-0.5)))),
    "cross scores scaled": plan(in_layers(1, at("cross_attention", "scale", by=times(24**-0.5)))),
    "encoder's scores scaled": asker(
        in_layers(1, at("self_attention", "scale", by=times(24**-0.5)))
    ),
    "scale": plan(in_layers(0, at("self_attention", "scale", by=times(1.01)))),
    "norm epsilon": plan(in_layers(0, at(*NORM, "epsilon", by=lambda _: 1e-3))),
    "encoder's norm epsilon": asker(in_layers(0, at(*NORM, "epsilon", by=lambda _: 1e-2))),
    "norm subtracts the mean": plan(in_layers(1, at(*NORM, "centred", by=lambda _: True))),
    "first norm subtracts the mean": plan(in_layers(0, at(*NORM, "centred", by=lambda _: True))),
    "encoder's norm subtracts the mean": asker(
        in_layers(2, at("feed_forward", "norm", "centred", by=lambda _: True))
    ),
    "final norm missing": plan(at("final_norm", by=lambda _: None)),
    "final norm's weight": plan(at("final_norm", "weight", by=rolled(1))),
    "encoder's final norm missing": asker(at("final_norm", by=lambda _: None)),
    "norm after": plan(at("norm_first", by=lambda _: False)),
    "two layers swapped": plan(swapped_layers),
    "encoder's layers swapped": asker(swapped_layers),
    "cross key and value swapped": plan(in_layers(0, swapped_cross)),
    "another embedding in the head": plan(at("lm_head", "weight", by=rolled(1))),
    "no causal mask": in_attributes(f"{HEAD}.decoder", "GroupQueryAttention", causal=0),
    "past one short": in_input(f"{HEAD}.decoder", "seqlens_k", minus_one),
    "another picture's states": in_input(f"{HEAD}.question", PICTURE, next_image),
    "another question's keys": in_input(f"{HEAD}.decoder", "cross_key.0", next_image),
    "another question's values": in_input(f"{HEAD}.decoder", "cross_value.1", next_image),
    "prompt before the picture": picture_behind,
    "queries in reverse": projector(lambda module: _Then(module, lambda x: x.flip(1))),
    "projection": projector(lambda module: _Then(module, lambda x: 1.001 * x)),
    "encoder's mask missing": in_input(f"{HEAD}.question", "question_lengths", all_count),
    "padding answers": in_input(f"{HEAD}.decoder", "cross_lengths", all_count),
    "another token for no prompt": question(unasked_tokens=(0,)),
    "nothing but the picture for no prompt": question(unasked_tokens=(1, 1)),
    "prompt without its end": question(suffix_tokens=()),
    "start token": in_generation(start_tokens=lambda _: (1,)),
    "end token ignored": in_generation(eos_tokens=lambda _: ()),
    "one token more": in_generation(max_new_tokens=lambda count: count + 1),
}
TABLES: dict[str, Table] = {
    "tiny-blip2-flan-t5": {
        **T5,
        "another layer's cross attention": plan(borrowed_cross),
        "gate and up swapped": plan(in_layers(1, at("feed_forward", by=gate_and_up_swapped))),
        "encoder's gate dropped": asker(
            in_layers(0, at("feed_forward", "gate", by=lambda _: None))
        ),
        "other gelu": plan(in_layers(1, at("feed_forward", "activation", by=other_gelu))),
        "states scaled though untied": plan(at("lm_head", "scale", by=lambda _: 64**-0.5)),
        "head tied": lambda draft, work: plan(
            at("lm_head", "weight", by=lambda _: head_of(work).plan.embedding.tokens)
        )(draft, work),
        **{what: VIT[what] for what in ("blue before red", "mean", "tower norm epsilon")},
    },
    "tiny-blip2-t5": {
        "states not scaled though tied": plan(at("lm_head", "scale", by=lambda _: 1.0)),
        "other activation": plan(in_layers(1, at("feed_forward", "activation", by=other_gelu))),
        "bucket one late": T5["bucket one late"],
        "final norm missing": T5["final norm missing"],
    },
}
# Of these the ones that other families' tables have alike; they are tried with the slow tests.
ALIKE = {
    "scale", "norm after", "two layers swapped", "cross key and value swapped", "start token",
    "another embedding in the head", "no causal mask", "past one short", "end token ignored",
    "one token more", "another layer's cross attention", "other gelu", "blue before red", "mean",
    "tower norm epsilon", "encoder's layers swapped", "encoder's distances cut off", "head tied",
    "first norm subtracts the mean", "final norm's weight", "projection",
}  # fmt: skip


def _draft(work: Work) -> Draft:
    draft = work.draft
    return dataclasses.replace(draft, graphs=dict(draft.graphs), heads=dict(draft.heads))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_mutated_passes_and_can_be_seen(
    t5_works: Callable[[str], Work], name: str, tmp_path: Path
) -> None:
    work = t5_works(name)
    draft = _draft(work)
    plan(lambda same: same)(draft, work)
    projector(lambda same: same)(draft, work)
    gate(draft, work, tmp_path)
    answers = work.answers[HEAD]
    texts = [tuple(tokens) for tokens in answers.forced]
    assert len(set(texts)) == len(texts)
    assert np.mean([len(set(text)) / len(text) for text in texts]) >= find_work(name).variety
    assert len({len(tokens) for tokens in answers.natural}) > 1  # some texts end
    assert [question is None for question in answers.questions] == [True, False] * 4


@pytest.mark.parametrize(
    ("name", "mutation"),
    cases(TABLES, slow=ALIKE),
)
def test_the_gate_catches(
    t5_works: Callable[[str], Work], name: str, mutation: Mutation, tmp_path: Path
) -> None:
    work = t5_works(name)
    draft = _draft(work)
    mutation(draft, work)
    with pytest.raises(GateError) as caught:
        gate(draft, work, tmp_path)
    assert caught.value.problems


def test_eight_bits(t5_works: Callable[[str], Work], tmp_path: Path) -> None:
    work = t5_works(NAMES[0])
    gate = dataclasses.replace(OPTIONS.gate, agreement=0.5)
    draft = _draft(work)
    draft.heads[HEAD] = _replace(draft.heads[HEAD], precision="int8")
    draft.graphs = {name: copy_of(graph) for name, graph in draft.graphs.items()}
    INT8.apply(draft.graphs)
    write_draft(draft, tmp_path, OPTIONS)
    report = prove(tmp_path, work.split, work.answers, gate)[HEAD]
    assert 0 < report.measured["logits"]["relative_rms_error"] < 0.3
