"""Heads whose decoder reads the picture as a prefix: the gate, its mutations, beams, questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import primelens
from primelens import CacheOptions, CaptionOptions, DecodingOptions, LoadOptions
from primelens.decoding import tree_session
from primelens.errors import EngineError, GateError, InputError, OptionError
from primelens.export.bundle_writer import write_draft
from primelens.export.decoder_plan import DecoderPlan
from primelens.export.draft import Draft
from primelens.export.pipeline import export_checkpoint, prove
from primelens.export.prefix_graph import build_prefix_connector, build_tree_decoder
from primelens.export.proof import ProofOptions, Subject, prove_captions
from primelens.export.quantise import INT8
from primelens.export.registry import Prefix
from primelens.export.work import find_work

from .conftest import OPTIONS, Work
from .mutation_tables import cases
from .mutations import (
    BERT,
    CROPPED,
    VIT,
    Mutation,
    Table,
    at,
    copy_of,
    in_input,
    minus_one,
    next_image,
    none,
    rolled,
    swapped_layers,
    times,
    zeroed,
)

_replace: Any = dataclasses.replace
HEAD = "caption"


def in_decoder(change: Callable[[DecoderPlan], DecoderPlan]) -> Mutation:
    """Build the decoder alone from a changed plan."""

    def mutate(draft: Draft, work: Work) -> None:
        draft.graphs[f"{HEAD}.decoder"] = build_tree_decoder(change(work.split.heads[HEAD].plan))

    return mutate


def in_layer(index: int, change: Callable[[Any], Any]) -> Mutation:
    def apply(plan: DecoderPlan) -> DecoderPlan:
        layers = list(plan.layers)
        layers[index] = change(layers[index])
        return _replace(plan, layers=tuple(layers))

    return in_decoder(apply)


def in_connector(
    prefix: Callable[[Prefix], Prefix] = lambda prefix: prefix,
    plan: Callable[[DecoderPlan], DecoderPlan] = lambda plan: plan,
) -> Mutation:
    """Build the connector alone from a changed prefix or plan."""

    def mutate(draft: Draft, work: Work) -> None:
        head = work.split.heads[HEAD]
        shape = draft.tower.taps[head.tap].shape
        draft.graphs[f"{HEAD}.connector"] = build_prefix_connector(
            plan(head.plan), prefix(head.prefix), head.tap, shape
        )

    return mutate


def swapped_outputs(first: str, second: str) -> Mutation:
    """Two of the connector's outputs under each other's names."""

    def mutate(draft: Draft, work: Work) -> None:
        model = draft.graphs[f"{HEAD}.connector"] = copy_of(draft.graphs[f"{HEAD}.connector"])
        values = {str(value.name): value for value in model.graph.outputs}
        values[first].name, values[second].name = second, first

    return mutate


def nothing_hidden(graph: ir.Graph, value: ir.Value) -> ir.Value:
    zero = ir.node("Sub", [value, value])
    zero.outputs[0].name = "mutated_bias"
    graph.insert_before(graph[0], zero)
    return zero.outputs[0]


class _Normed(torch.nn.Module):
    """The prefix through the text's own embedding normalisation."""

    def __init__(self, module: torch.nn.Module, plan: DecoderPlan) -> None:
        super().__init__()
        norm = plan.embedding.norm
        assert norm is not None
        assert norm.bias is not None
        self.module, self.weight = module, torch.from_numpy(norm.weight)
        self.bias = torch.from_numpy(norm.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.module(states)
        return torch.nn.functional.layer_norm(states, states.shape[-1:], self.weight, self.bias)


class _Reversed(torch.nn.Module):
    """The prefix from its end to its start."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        prefix: torch.Tensor = self.module(states)
        return prefix.flip(1)


class _Late(torch.nn.Module):
    """The prefix at positions that are one too high."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.places = module, module.places

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        prefix: torch.Tensor = self.module(states)
        return prefix - self.places + self.places.roll(-1, 0)


def embedding_norm_on_the_prefix(draft: Draft, work: Work) -> None:
    plan = work.split.heads[HEAD].plan
    in_connector(lambda p: _replace(p, module=_Normed(p.module, plan)))(draft, work)


def projection_changed(part: str) -> Mutation:
    def mutate(draft: Draft, work: Work) -> None:
        model = draft.graphs[f"{HEAD}.connector"] = copy_of(draft.graphs[f"{HEAD}.connector"])
        (value,) = [
            value for value in model.graph.initializers.values() if str(value.name).endswith(part)
        ]
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)

    return mutate


CONNECTOR, DECODER = f"{HEAD}.connector", f"{HEAD}.decoder"
TAP = "last_hidden_state"
PREFIX: Table = {
    "prefix causal": in_connector(lambda prefix: _replace(prefix, causal=True)),
    "another image's prefix": in_input(CONNECTOR, TAP, next_image),
    "another layer's prefix": swapped_outputs("prefix_key.0", "prefix_key.1"),
    "prefix key and value swapped": swapped_outputs("prefix_key.2", "prefix_value.2"),
    "embedding norm on the prefix": embedding_norm_on_the_prefix,
    "projection bias": projection_changed("visual_projection.0.bias"),
    "projection norm": projection_changed("visual_projection.1.weight"),
    "connector's layers swapped": in_connector(plan=swapped_layers),
    "text positions behind the prefix": in_decoder(at("embedding", "positions", by=rolled(-17))),
    "sequences of a picture see each other": in_input(DECODER, "attention_bias", nothing_hidden),
    "cache one short": in_input(DECODER, "seqlens_k", minus_one),
    "query bias dropped": in_layer(0, at("self_attention", "qkv", "bias", by=zeroed(0))),
    "value bias dropped": in_layer(1, at("self_attention", "qkv", "bias", by=zeroed(2))),
    "attention output bias dropped": in_layer(2, at("self_attention", "out", "bias", by=none)),
    "self attention scale": in_layer(0, at("self_attention", "scale", by=times(1.01))),
    "mlp up bias dropped": in_layer(0, at("feed_forward", "up", "bias", by=none)),
    "norm bias dropped": in_layer(1, at("feed_forward", "norm", "bias", by=none)),
    "two layers swapped": in_decoder(swapped_layers),
    "position one late": in_decoder(at("embedding", "positions", by=rolled(1))),
    "embedding norm missing": in_decoder(at("embedding", "norm", by=none)),
    "head bias dropped": in_decoder(at("lm_head", "bias", by=none)),
    "norm first": in_decoder(at("norm_first", by=lambda _: True)),
    **{what: BERT[what] for what in ("start token", "end token ignored", "one token more")},
    **{what: VIT[what] for what in ("first state dropped", "blue before red", "mean")},
    "tower norm epsilon": VIT["tower norm epsilon"],
    **CROPPED,
}
OPT: Table = {
    "queries in reverse": in_connector(lambda p: _replace(p, module=_Reversed(p.module))),
    "prefix bidirectional": in_connector(lambda prefix: _replace(prefix, causal=False)),
    "prefix one position late": in_connector(lambda p: _replace(p, module=_Late(p.module))),
    "another image's prefix": PREFIX["another image's prefix"],
    "text positions as if without placeholders": in_decoder(
        at("embedding", "positions", by=rolled(8))
    ),
    "final norm missing": in_decoder(at("final_norm", by=none)),
    "norm after": in_decoder(at("norm_first", by=lambda _: False)),
    "value bias dropped": PREFIX["value bias dropped"],
    "start token": PREFIX["start token"],
    "end token ignored": PREFIX["end token ignored"],
}
OVER_A_MAP: Table = {
    **{what: VIT[what] for what in ("first state dropped", "upside down", "tower vector changed")},
    **{what: PREFIX[what] for what in ("prefix causal", "another image's prefix", "mean")},
    "projection bias": PREFIX["projection bias"],
    "position one late": PREFIX["position one late"],
    "end token ignored": PREFIX["end token ignored"],
}
TABLES: dict[str, Table] = {"tiny-git": PREFIX, "tiny-blip2-opt": OPT, "tiny-resnetgit": OVER_A_MAP}


def _gate(draft: Draft, work: Work, folder: Path) -> None:
    write_draft(draft, folder, OPTIONS)
    prove(folder, work.split, work.answers, OPTIONS.gate)


def _draft(work: Work) -> Draft:
    draft = work.draft
    return dataclasses.replace(draft, graphs=dict(draft.graphs), heads=dict(draft.heads))


@pytest.mark.parametrize(
    ("name", "mutation"),
    cases(TABLES),
)
def test_the_gate_catches(
    works: Callable[[str], Work], name: str, mutation: Mutation, tmp_path: Path
) -> None:
    work = works(name)
    draft = _draft(work)
    mutation(draft, work)
    with pytest.raises(GateError) as caught:
        _gate(draft, work, tmp_path)
    assert caught.value.problems


def test_the_gate_catches_a_broken_session(
    works: Callable[[str], Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What proves the bundle is the runtime's own session, so its defects are found, too."""
    work = works("tiny-git")
    _gate(work.draft, work, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tree_session, "_HIDDEN", np.float32(0))
        with pytest.raises(GateError):
            _gate(work.draft, work, tmp_path)

    class Unread(tree_session.TreeSession):
        def reset(self) -> None:
            self.prefix = {name: np.zeros_like(array) for name, array in self.prefix.items()}
            super().reset()

    with monkeypatch.context() as patch:
        patch.setattr("primelens.prefix_head.TreeSession", Unread)
        with pytest.raises(GateError):
            _gate(work.draft, work, tmp_path)


@pytest.mark.parametrize("name", list(TABLES))
def test_the_gate_can_see(works: Callable[[str], Work], name: str) -> None:
    answers = works(name).answers[HEAD]
    texts = [tuple(tokens) for tokens in answers.forced]
    assert len(set(texts)) == len(texts)
    assert np.mean([len(set(text)) / len(text) for text in texts]) >= find_work(name).variety
    lengths = [len(tokens) for tokens in answers.natural]
    assert min(lengths) < 20
    assert max(lengths) == 20


def test_eight_bits(works: Callable[[str], Work], tmp_path: Path) -> None:
    work = works("tiny-git")
    gate = dataclasses.replace(OPTIONS.gate, agreement=0.5)
    head = _replace(work.draft.heads[HEAD], precision="int8")
    draft = _replace(_draft(work), heads={HEAD: head})
    draft.graphs = {name: copy_of(graph) for name, graph in draft.graphs.items()}
    INT8.apply(draft.graphs)
    write_draft(draft, tmp_path, OPTIONS)
    report = prove(tmp_path, work.split, work.answers, gate)[HEAD]
    assert 0 < report.measured["logits"]["relative_rms_error"] < 0.3


# The runtime ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def git(works: Callable[[str], Work], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("git")
    write_draft(works("tiny-git").draft, folder, OPTIONS)
    return folder


@pytest.mark.parametrize("name", list(TABLES))
def test_beams_and_prompts_equal_generate(
    works: Callable[[str], Work], name: str, tmp_path: Path
) -> None:
    work, options = works(name), LoadOptions(threads=1, check="size")
    answers = work.answers[HEAD]
    _gate(work.draft, work, tmp_path)
    small = ProofOptions(
        pictures=4, steps=20, beams=(3,), penalties=(0.6, 1.4), batches=(3,), threads=1
    )
    subject = Subject(
        work=find_work(name),
        options=small,
        source=work.checkpoint,
        name=HEAD,
        head=work.split.heads[HEAD],
        model=primelens.load(tmp_path, options=options),
        pictures=answers.pictures,
        pixels=answers.pixels,
        rounding=answers.logits.noise,
    )
    found = prove_captions(subject)
    assert found.failures == []
    assert found.ties == 0
    assert found.searches == 2 * 3


@pytest.mark.parametrize("beams", [1, 3])
def test_questions_of_a_picture_are_answered_together(
    works: Callable[[str], Work], git: Path, beams: int
) -> None:
    """Each as the source answers it by itself, however long the others are; log-probabilities as
    if it were alone.
    """
    work = works("tiny-git")
    model = primelens.load(git, options=LoadOptions(threads=1, check="size"))
    questions = ["a", "what is it", "a view of the sea and", "what is it"]
    reference: Any = work.split.heads[HEAD].reference
    decoding = DecodingOptions(num_beams=beams)
    options = CaptionOptions(head=HEAD, max_new_tokens=12, decoding=decoding)
    for k, picture in enumerate(work.answers[HEAD].pictures[: 3 - beams // 2]):
        found = model.answer(picture, questions, options)
        for question, answer in zip(questions, found, strict=True):
            ids = model.head().text.encode(question)
            length = {"max_new_tokens": 12, "num_beams": beams}
            pixels = work.answers[HEAD].pixels[k : k + 1]
            assert [list(answer.tokens)] == reference.generate_after(pixels, ids, length)
            alone = model.answer(picture, question, options)
            np.testing.assert_allclose(answer.token_logprobs, alone.token_logprobs, atol=1e-4)


def test_a_prefix_is_derived_once(works: Callable[[str], Work], git: Path, tmp_path: Path) -> None:
    pictures = list(works("tiny-git").answers[HEAD].pictures[:3])
    options = LoadOptions(threads=1, check="size")
    model = primelens.load(git, options=options, cache=CacheOptions(tmp_path / "kept"))
    first, second, third = (model.caption(pictures) for _ in range(3))
    assert [caption.cache for caption in second] == ["hit"] * 3
    assert model._derived is not None
    assert (model._derived.misses, model._derived.hits) == (6, 3)  # held from the second time on
    for again in (second, third):
        assert [c.token_logprobs for c in first] == [c.token_logprobs for c in again]
    alone = [model.caption(picture) for picture in pictures]
    assert [c.token_logprobs for c in alone] == [c.token_logprobs for c in first]


def test_an_older_engine_is_named(git: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from primelens.engine_onnx import OnnxEngine

    opened = OnnxEngine.open

    def refuse(self: OnnxEngine, path: Path) -> Any:
        if path.name.endswith(".decoder.onnx"):
            raise EngineError("ONNX Runtime 1.31.1 cannot open it: 17 inputs", remedy="Upgrade.")
        return opened(self, path)

    monkeypatch.setattr(OnnxEngine, "open", refuse)
    with pytest.raises(EngineError, match=r"1\.31\.1[\s\S]*needs? ONNX Runtime 1\.32"):
        primelens.load(git, options=LoadOptions(check="size"))


def test_a_head_for_questions(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing in the checkpoint says that it answers; whoever exports it does."""
    options = dataclasses.replace(OPTIONS, head_kind="answer")
    report = export_checkpoint(checkpoints("tiny-git"), tmp_path / "out", options)
    assert report.passed
    model = primelens.load(tmp_path / "out", options=LoadOptions(threads=1))
    assert {name: head.kind for name, head in model.manifest.heads.items()} == {"answer": "answer"}
    answer = model.answer(np.zeros((40, 50, 3), np.uint8), "what is it")
    assert answer.question == "what is it"
    with pytest.raises(InputError, match="no caption head"):
        model.caption(np.zeros((40, 50, 3), np.uint8))
    with pytest.raises(OptionError, match="could be called"):
        export_checkpoint(checkpoints("tiny-vitgpt2"), tmp_path / "other", options)
    assert not (tmp_path / "other").exists()
