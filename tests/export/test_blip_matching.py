"""BLIP's image-text matching: both scores against the source, mutations, 8 bits, company."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import primelens
from primelens import LoadOptions, RankOptions
from primelens.errors import GateError, OptionError, PrimelensError
from primelens.export.bundle_writer import write_draft
from primelens.export.checkpoint import open_checkpoint
from primelens.export.connector_graph import build_connector
from primelens.export.decoder_plan import Stack
from primelens.export.draft import Draft
from primelens.export.matching_graph import build_matching
from primelens.export.pictures import random_pictures
from primelens.export.pipeline import prove, write_proved
from primelens.export.proof import ProofOptions, Subject
from primelens.export.quantise import INT8
from primelens.export.question_graph import read_by
from primelens.export.rank_proof import prove_rankings
from primelens.export.work import find_work
from primelens.kernels import DOMAIN
from primelens.options import CacheOptions
from primelens.verify import verify

from .mutation_tables import counting
from .mutations import at, in_input, none, swapped_cross, times, without_first_state, zeroed
from .rank_mutations import (
    OPTIONS,
    Drafted,
    copied,
    gated,
    in_head,
    in_text,
    in_weight,
    mask_of_ones,
    rolled,
    scaled,
    without_frame,
    zero,
)

_replace: Any = dataclasses.replace
LABELS = ["cat", "two dogs on a beach", "a red square", "sea", "it is raining, and people run home"]
ITM, ITC = RankOptions("itm"), RankOptions("itc")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def work(drafted: Callable[[str], Drafted]) -> Drafted:
    return drafted("tiny-blip-itm")


@pytest.fixture(scope="module")
def bundle(work: Drafted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "itm"
    folder.mkdir()
    write_proved(copied(work.draft), work.split, work.answers, folder, OPTIONS)
    return folder


@pytest.fixture(scope="module")
def eight_bits(work: Drafted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    draft = copied(work.draft)
    draft.graphs = {n: ir.from_proto(ir.to_proto(g)) for n, g in draft.graphs.items()}
    draft.heads["rank"] = _replace(draft.heads["rank"], precision="int8")
    INT8.apply(draft.graphs)
    for name in ("rank.match", "rank.match.connector"):
        assert any(node.domain == DOMAIN for node in draft.graphs[name].graph)
    folder = tmp_path_factory.mktemp("eight")
    write_draft(draft, folder, OPTIONS)
    gate = _replace(OPTIONS.gate, agreement=0.5)
    measured = prove(folder, work.split, work.answers, gate)["rank"].measured
    assert 0 < measured["match"]["relative_rms_error"] < 0.3
    return folder


def load(folder: Path, **more: Any) -> primelens.Model:
    return primelens.load(folder, options=LoadOptions(threads=1, check="size"), **more)


def test_both_scores_pass_and_can_be_seen(work: Drafted, tmp_path: Path) -> None:
    report = gated(work, work.draft, tmp_path / "bundle")
    assert report.failures == []
    assert report.measured["rankings"] == 2 * 2
    assert report.measured["match"]["largest_error_to_float64"] > 0
    answers = work.answers["rank"]
    logits = answers.match.double
    matched = logits[..., 1] - logits[..., 0]
    assert np.ptp(matched, axis=1).min() > 0.2
    assert np.median(np.ptp(matched, axis=0)) > 0.05
    assert (matched.argsort(axis=1) != answers.scores.double.argsort(axis=1)).any()
    assert len({len(ids) for ids in answers.ids}) >= 3
    assert max(len(ids) for ids in answers.ids) == 35


def test_rankings_equal_the_sources(work: Drafted, bundle: Path) -> None:
    model, source = load(bundle), open_checkpoint(work.folder)
    head = source.family.split(source.model).heads["rank"]
    pictures = random_pictures(4, (32, 32), 3)
    pixels = np.stack([model.preprocessing(picture) for picture in pictures])
    options = ProofOptions(batches=(1, 3), threads=1)
    name = find_work("tiny-blip-itm")
    subject = Subject(name, options, source, "rank", head, model, pictures, pixels, 0.0)
    found = prove_rankings(subject)
    assert found.failures == []
    assert found.rankings == 2 * 3 * 2 * 4
    assert verify(bundle, options=LoadOptions(threads=1)).passed


def test_the_probability_is_the_softmax_of_two_logits(bundle: Path) -> None:
    model, picture = load(bundle), random_pictures(1, (32, 32), 7)[0]
    ranking = model.rank(picture, LABELS)
    assert (ranking.score, ranking.scoring) == ("itm", "sigmoid")
    logits = model.rank_head().match_logits(model.encode(picture), LABELS).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for label in ranking.labels:
        assert label.probability == pytest.approx(shares[label.index, 1], abs=1e-12)
    scores = [label.score for label in ranking.labels]
    assert scores == sorted(scores, reverse=True)
    both = model.rank(picture, LABELS, template=["a {}", "{}!"], options=ITM).labels
    single = [model.rank(picture, LABELS, template=t, options=ITM).labels for t in ("a {}", "{}!")]
    for label in both:
        parts = [next(x.score for x in one if x.index == label.index) for one in single]
        assert label.score == pytest.approx(np.mean(parts), abs=1e-12)


def test_a_preselection_matches_what_the_embeddings_hold_best(bundle: Path) -> None:
    model, picture = load(bundle), random_pictures(1, (32, 32), 7)[0]
    by_itc = model.rank(picture, LABELS, options=ITC)
    assert by_itc.score == "itc"
    for count in (1, 3, 99):
        found = model.rank(picture, LABELS, options=RankOptions(preselect=count)).labels
        chosen = {label.index for label in by_itc.labels[:count]}
        wanted = [x for x in model.rank(picture, LABELS, options=ITM).labels if x.index in chosen]
        assert list(found) == wanted
    with pytest.raises(OptionError, match="preselect"):
        RankOptions("itc", 3)
    with pytest.raises(OptionError, match="itm"):
        RankOptions("other")  # type: ignore[arg-type]


def test_a_picture_is_read_once(bundle: Path, tmp_path: Path) -> None:
    model = load(bundle, cache=CacheOptions(tmp_path / "kept"))
    picture = random_pictures(1, (32, 32), 7)[0]
    first = model.rank(picture, LABELS)
    stats = model.cache_stats()
    model.rank(picture, LABELS[:2])  # what is derived of it is held from now on
    again = model.rank(picture, LABELS[:2])
    later = model.cache_stats()
    assert stats is not None
    assert later is not None
    assert (stats.derived_hits, later.derived_hits) == (0, 1)
    by_index = {label.index: label for label in first.labels}
    assert all(label == by_index[label.index] for label in again.labels)
    model.close()


WORDS = st.text(alphabet="abcdefgh ,.", min_size=1, max_size=60).filter(lambda text: text.strip())


@pytest.mark.parametrize("bits", ["bundle", "eight_bits"])
def test_no_bit_depends_on_companions(request: pytest.FixtureRequest, bits: str) -> None:
    """Scores, embeddings and taps: alone, and among other texts and pictures."""
    model = load(request.getfixturevalue(bits))
    pictures = random_pictures(4, (32, 32), 9)
    alone = [model.encode(picture) for picture in pictures]

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        texts=st.lists(WORDS, min_size=1, max_size=9),
        places=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    )
    def holds(texts: list[str], places: list[int]) -> None:
        encoded = list(model.encode_batch([pictures[k] for k in places]))
        for options in (ITM, ITC):
            rankings = model.rank(encoded, texts, options=options)
            for place, ranking in zip(places, rankings, strict=True):
                for label in ranking.labels:
                    one = model.rank(alone[place], [label.label], options=options).best
                    assert one.score == label.score
        for place, image in zip(places, encoded, strict=True):
            for tap, values in image.taps.items():
                assert np.array_equal(values, alone[place].taps[tap])

    holds()


# Mutations ---------------------------------------------------------------------------------------

Change = Callable[[Any], Any]


def in_layers(index: int, change: Change) -> Change:
    def apply(stack: Stack) -> Any:
        layers = list(stack.layers)
        layers[index] = change(layers[index])
        return _replace(stack, layers=tuple(layers))

    return apply


def reader(change: Change) -> Callable[[Draft, Drafted], None]:
    """Build connector and matching from a changed stack."""
    return matching(at("stack", by=change))


def matching(change: Change) -> Callable[[Draft, Drafted], None]:
    def mutate(draft: Draft, work: Drafted) -> None:
        head: Any = work.split.heads["rank"]
        plan, (length, _) = change(head.matching), draft.tower.taps[head.tap].shape
        draft.graphs["rank.match"] = build_matching(plan, length)
        draft.graphs["rank.match.connector"] = build_connector(
            read_by(plan.stack),
            tap=head.tap,
            length=length,
            heads=plan.stack.heads,
            outputs="picture",
        )

    return mutate


def alone(mutation: Callable[[Draft], None]) -> Callable[[Draft, Drafted], None]:
    return lambda draft, _: mutation(draft)


def graph(name: str, place: str, insert: Any) -> Callable[[Draft, Drafted], None]:
    mutation: Any = in_input(name, place, insert)
    return mutation  # type: ignore[no-any-return]


def all_count(model: Any, value: Any) -> Any:
    """The mask leaves nothing out."""
    return counting(model, value, 64)


def borrowed(stack: Stack) -> Any:
    """Layer 1 reads keys and values that belong to layer 2."""
    lender: Any = stack.layers[2].cross_attention
    layer: Any = stack.layers[1]
    cross = _replace(layer.cross_attention, key=lender.key, value=lender.value)
    layers = (stack.layers[0], _replace(layer, cross_attention=cross), *stack.layers[2:])
    return _replace(stack, layers=layers)


MATCHING = {
    "query bias dropped": reader(in_layers(0, at("self_attention", "qkv", "bias", by=zeroed(0)))),
    "value bias dropped": reader(in_layers(1, at("self_attention", "qkv", "bias", by=zeroed(2)))),
    "output bias dropped": reader(in_layers(2, at("self_attention", "out", "bias", by=none))),
    "cross query bias dropped": reader(
        in_layers(1, at("cross_attention", "query", "bias", by=none))
    ),
    "cross value bias dropped": reader(
        in_layers(0, at("cross_attention", "value", "bias", by=none))
    ),
    "cross key and value swapped": reader(in_layers(1, swapped_cross)),
    "cross scale": reader(in_layers(1, at("cross_attention", "scale", by=times(1.02)))),
    "another layer's keys and values": reader(borrowed),
    "mlp bias dropped": reader(in_layers(1, at("feed_forward", "down", "bias", by=none))),
    "two layers swapped": reader(
        lambda s: _replace(s, layers=(s.layers[1], s.layers[0], s.layers[2]))
    ),
    "position one late": reader(at("embedding", "positions", by=rolled)),
    "epsilon": reader(in_layers(0, at("feed_forward", "norm", "epsilon", by=lambda _: 1e-3))),
    "embedding without norm": reader(at("embedding", "norm", by=none)),
    "match and no match exchanged": matching(
        at("head", by=lambda h: _replace(h, weight=h.weight[:, ::-1], bias=h.bias[::-1]))
    ),
    "head bias dropped": matching(at("head", "bias", by=none)),
    "first state of the picture dropped": graph(
        "rank.match.connector", "last_hidden_state", without_first_state
    ),
    "padding is read": graph("rank.match", "text_lengths", all_count),
    "second token's state": alone(in_weight("rank.match", r"match\.first", lambda a: a + 1)),
    "no matching": alone(in_head(matching=None)),
    "scale of the scores": alone(scaled(1.001)),
    "bias of the scores": alone(in_head(bias=0.001)),
    "templates": alone(in_head(templates=("a {}",))),
    "other scoring": alone(in_head(scoring="sigmoid")),
    "cut one token later": alone(in_text(max_length=36)),
    "tokenizer without frame": alone(without_frame),
    "text projection rolled": alone(in_weight("rank.text", r"projection\.weight", rolled)),
    "text projection's bias": alone(in_weight("rank.text", r"projection\.bias", zero)),
    "image projection rolled": alone(in_weight("rank.image", r"projection\.weight", rolled)),
    "image projection's bias": alone(in_weight("rank.image", r"projection\.bias", zero)),
    "image's second state": graph("rank.image", "last_hidden_state", without_first_state),
    "padding is seen by the text tower": alone(mask_of_ones),
    "positions of the text tower": alone(
        in_weight("rank.text", r"position_embeddings\.weight", rolled)
    ),
    "text tower's value bias": alone(
        in_weight("rank.text", r"layer\.1\.attention\.self\.value\.bias", zero)
    ),
}


def test_what_is_built_again_passes(work: Drafted, tmp_path: Path) -> None:
    draft = copied(work.draft)
    matching(lambda plan: plan)(draft, work)
    assert gated(work, draft, tmp_path / "bundle").failures == []


@pytest.mark.parametrize("what", list(MATCHING))
def test_the_gate_catches(work: Drafted, what: str, tmp_path: Path) -> None:
    draft = copied(work.draft)
    MATCHING[what](draft, work)
    with pytest.raises((GateError, PrimelensError)) as caught:
        gated(work, draft, tmp_path / "bundle")
    assert str(caught.value)
