"""Dual encoders through the whole export, and the mutation table of their gate."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import primelens
from primelens.bundle import open_bundle
from primelens.errors import GateError, UnsupportedError
from primelens.export import export_checkpoint, verify_against
from primelens.export.bundle_writer import write_draft
from primelens.export.lock import compare_towers, identify
from primelens.export.pictures import random_picture, random_pictures
from primelens.export.pipeline import prove
from primelens.export.quantise import INT8
from primelens.verify import verify

from .rank_mutations import (
    OPTIONS,
    Drafted,
    Mutation,
    copied,
    gated,
    in_head,
    in_nodes,
    in_text,
    in_weight,
    mask_of_ones,
    rolled,
    scaled,
    swapped_sides,
    without_frame,
    zero,
)

LABELS = ["cat", "two dogs on a beach", "a red square", "sea"]
_replace: Any = dataclasses.replace


@pytest.mark.parametrize(
    "name", ["tiny-lit", "tiny-clip", "tiny-siglip", "tiny-siglip2", "tiny-pooledbert"]
)
def test_the_unmutated_draft_passes(
    drafted: Callable[[str], Drafted], tmp_path: Path, name: str
) -> None:
    work = drafted(name)
    report = gated(work, work.draft, tmp_path / "bundle")
    assert report.failures == []
    assert report.measured["rankings"] == 2
    assert report.measured["scores"]["largest_error_to_float64"] > 0
    text = work.draft.heads["rank"].text  # type: ignore[union-attr]
    assert text.pad_to_max == name.startswith("tiny-siglip")
    assert text.pad_left == (name == "tiny-siglip2")
    assert text.masked == (name != "tiny-siglip")


def test_the_answers_can_tell(drafted: Callable[[str], Drafted]) -> None:
    """Texts and pictures are apart, and the long text is cut."""
    for name in ("tiny-lit", "tiny-clip", "tiny-siglip"):
        answers = drafted(name).answers["rank"]
        scores = answers.scores.double
        assert np.median(np.ptp(scores, axis=0)) > 0.1  # a single text may hardly tell them apart
        assert np.ptp(scores, axis=1).min() > 1
        lengths = {len(ids) for ids in answers.ids}
        assert len(lengths) >= 3 or name == "tiny-siglip"
        longest = drafted(name).draft.heads["rank"].text.max_length  # type: ignore[union-attr]
        assert max(lengths) == longest


# Mutations ----------------------------------------------------------------------------------------

COMMON: dict[str, Mutation] = {
    "scale": scaled(1.001),
    "bias of the scores": in_head(bias=0.125),
    "other scoring": in_head(scoring="linear"),
    "templates": in_head(templates=("a {}",)),
    "cut one token later": in_text(max_length=11),
    "norm epsilon": in_nodes("rank.text", "LayerNormalization", epsilon=1e-3),
    "normalisations swapped": swapped_sides,
    "tokenizer without frame": without_frame,
    "image projected otherwise": in_nodes("rank.image", "ReduceL2", keepdims=1, axes=[0]),
}
TABLE: list[tuple[str, str, Mutation]] = [
    *(("tiny-clip", name, mutation) for name, mutation in COMMON.items()),
    ("tiny-clip", "query bias", in_weight("rank.text", r"0\.self_attn\.q_proj\.bias", zero)),
    ("tiny-clip", "value bias", in_weight("rank.text", r"1\.self_attn\.v_proj\.bias", zero)),
    ("tiny-clip", "output bias", in_weight("rank.text", r"0\.self_attn\.out_proj\.bias", zero)),
    ("tiny-clip", "mlp bias", in_weight("rank.text", r"1\.mlp\.fc2\.bias", zero)),
    ("tiny-clip", "final norm", in_weight("rank.text", r"final_layer_norm\.bias", zero)),
    ("tiny-clip", "positions", in_weight("rank.text", r"position_embedding\.weight", rolled)),
    ("tiny-clip", "text projection", in_weight("rank.text", r"projection\.weight", rolled)),
    ("tiny-clip", "image projection", in_weight("rank.image", r"projection\.weight", rolled)),
    ("tiny-clip", "projection zeroed", in_weight("rank.image", r"projection\.weight", zero)),
    ("tiny-clip", "projection transposed",
     in_weight("rank.image", r"projection\.weight", lambda a: a.T.copy().reshape(a.shape))),
    ("tiny-clip", "end token", in_weight("rank.text", r"^scalar_tensor_default", lambda a: a + 1)),
    ("tiny-clip", "tower norm", in_nodes("tower", "LayerNormalization", epsilon=1e-3)),
    ("tiny-lit", "scale", scaled(0.999)),
    ("tiny-lit", "padding is seen", mask_of_ones),
    ("tiny-lit", "token types", in_weight("rank.text", r"token_type_embeddings\.weight", zero)),
    ("tiny-lit", "pooler bias", in_weight("rank.text", r"pooler\.dense\.bias", zero)),
    ("tiny-lit", "pooler transposed",
     in_weight("rank.text", r"pooler\.dense\.weight", np.transpose)),
    ("tiny-lit", "tokenizer without frame", without_frame),
    ("tiny-siglip", "bias of the scores", in_head(bias=0.0)),
    ("tiny-siglip", "padding is masked", in_text(masked=True)),
    ("tiny-siglip", "padding on the left", in_text(pad_left=True)),
    ("tiny-siglip", "padding token", in_text(pad_token=2)),
    ("tiny-siglip", "head bias", in_weight("rank.text", r"model\.head\.bias", zero)),
    ("tiny-siglip", "head transposed",
     in_weight("rank.text", r"model\.head\.weight", np.transpose)),
    ("tiny-siglip", "other scoring", in_head(scoring="softmax")),
    ("tiny-pooledbert", "pooling query", in_weight("rank.image", r"pooling\.query", rolled)),
    ("tiny-pooledbert", "pooling norm", in_nodes("rank.image", "LayerNormalization", epsilon=1e-3)),
    ("tiny-pooledbert", "pooling value",
     in_weight("rank.image", r"pooling\.value\.bias", zero)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mutation"), [pytest.param(n, m, id=f"{n}-{what}") for n, what, m in TABLE]
)
def test_the_gate_catches(
    drafted: Callable[[str], Drafted], tmp_path: Path, name: str, mutation: Mutation
) -> None:
    work = drafted(name)
    draft = copied(work.draft)
    mutation(draft)
    with pytest.raises((GateError, primelens.PrimelensError)) as caught:
        gated(work, draft, tmp_path / "bundle")
    assert str(caught.value)


# Whole bundles ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(
    drafted: Callable[[str], Drafted], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Checkpoint and bundle."""
    folder = drafted("tiny-clip").folder
    out = tmp_path_factory.mktemp("out") / "bundle"
    report = export_checkpoint(folder, out, OPTIONS)
    assert report.passed
    return folder, out


def test_a_bundle_that_only_ranks(bundle: tuple[Path, Path]) -> None:
    folder, out = bundle
    replay = verify(out, options=primelens.LoadOptions(threads=1))
    assert replay.passed, replay.lines
    assert len(replay.checks) == 2 * 5  # pixels, tap, image, text, scores
    against = verify_against(out, folder, OPTIONS.gate)
    assert against.passed, against.lines
    assert any("rankings identical" in line for line in against.lines)
    card = (out / "README.md").read_text()
    assert ".rank(" in card
    assert "2 rankings identical" in card
    manifest = open_bundle(out).manifest
    assert identify(folder).taps == {"pooler_output": manifest.tower.taps["pooler_output"].identity}
    assert compare_towers(folder, folder).locked


def test_kept_embeddings_rank_without_the_tower(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = bundle
    picture = random_picture(40, 30, 5)
    cache = primelens.CacheOptions(tmp_path / "kept")
    first = primelens.load(out, cache=cache).rank(picture, LABELS)
    again = primelens.load(out, cache=cache).rank(picture, LABELS)
    assert (first.cache, again.cache) == ("miss", "hit")
    assert first.labels == again.labels == primelens.load(out).rank(picture, LABELS).labels


def test_companions_change_no_bit(bundle: tuple[Path, Path]) -> None:
    _, out = bundle
    model = primelens.load(out, options=primelens.LoadOptions(threads=2))
    pictures = random_pictures(5, (32, 32), 9)
    texts = ["a", "a photo of a cat", "x" * 60, *(f"number {n} of many" for n in range(40))]
    together = model.embed_text(texts)
    tower = model.rank_head().text
    for row, text in zip(together, texts, strict=True):
        assert np.array_equal(tower.computed([text])[text], row)
    rankings = model.rank(pictures, texts)
    for picture, ranking in zip(pictures, rankings, strict=True):
        assert primelens.load(out).rank(picture, texts).labels == ranking.labels


def test_eight_bits_keep_the_order(drafted: Callable[[str], Drafted], tmp_path: Path) -> None:
    work = drafted("tiny-lit")
    head = _replace(work.draft.heads["rank"], precision="int8")
    draft = _replace(
        work.draft,
        graphs={n: ir.from_proto(ir.to_proto(g)) for n, g in work.draft.graphs.items()},
        heads={"rank": head},
    )
    INT8.apply(draft.graphs)
    names = list(draft.graphs["rank.text"].graph.initializers)
    assert any(name.endswith(".packed") for name in names)
    gate = _replace(OPTIONS.gate, agreement=0.7)
    (tmp_path / "out").mkdir()
    write_draft(draft, tmp_path / "out", OPTIONS)
    report = prove(tmp_path / "out", work.split, work.answers, gate)["rank"]
    assert report.measured["top1_agreement"] >= 0.7
    scaled(-1.0)(draft)
    write_draft(draft, tmp_path / "out", OPTIONS)
    with pytest.raises(GateError, match="top-1 agreement"):
        prove(tmp_path / "out", work.split, work.answers, gate)


def test_a_tokenizer_that_moves_positions_is_refused(
    drafted: Callable[[str], Drafted], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(drafted("tiny-lit").folder, tmp_path / "checkpoint"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"padding_side": "left"}
    path.write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match="pads on the left"):
        export_checkpoint(folder, tmp_path / "out", OPTIONS)
