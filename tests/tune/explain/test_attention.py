"""Attention read off a bundle: against the source model's own, and the arithmetic around it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from primelens import CaptionOptions, DecodingOptions, UnsupportedError
from primelens.export.checkpoint import open_checkpoint
from primelens.export.options import ExportOptions, GateOptions
from primelens.export.pipeline import export_checkpoint
from primelens.export.reference_works import build
from primelens.tune.explain.attention import Explainer, grid_of, rollout, words_of

PICTURE = np.random.default_rng(7).integers(0, 256, (48, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["tiny-vitgpt2", "tiny-vitbert"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The source model, and the bundle opened for looking into it."""
    base = tmp_path_factory.mktemp("explain")
    folder = build(request.param, base / "checkpoint", seed=3)
    gate = GateOptions(threads=1, random_images=2, steps=6)
    export_checkpoint(folder, base / "bundle", ExportOptions(gate=gate))
    checkpoint = open_checkpoint(folder)
    return checkpoint, Explainer(base / "bundle", threads=1)


def test_cross_attention_is_the_source_models(opened: Any) -> None:
    checkpoint, explainer = opened
    explanation = explainer.explain(
        PICTURE, CaptionOptions(max_new_tokens=9, min_new_tokens=9), question=None
    )
    caption = explanation.caption
    model = checkpoint.model
    model.decoder.set_attn_implementation("eager")
    pixels = torch.from_numpy(checkpoint.preprocessing.batch([PICTURE]))
    start = list(explainer.model.head().spec.generation.start_tokens)
    with torch.no_grad():
        output = model(
            pixel_values=pixels,
            decoder_input_ids=torch.tensor([start + list(caption.tokens[:-1])]),
            output_attentions=True,
        )
    wanted = torch.stack(output.cross_attentions).double().mean(dim=(0, 2))[0].numpy()
    found, method = explainer._weights(explainer.model.encode(PICTURE), caption, None)
    assert method == "cross-attention"
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert np.ptp(found, axis=1).max() > 1e-3  # not a uniform map, of which this would be blind
    for word in explanation.words:
        np.testing.assert_allclose(word.attention.sum(), 1.0, atol=1e-12)
        assert word.attention.shape == explanation.grid


def test_the_text_is_what_the_bundle_says_without_looking(opened: Any, tmp_path: Path) -> None:
    import primelens

    _, explainer = opened
    plain = primelens.load(explainer.model.folder, options=primelens.LoadOptions(threads=1))
    options = CaptionOptions(max_new_tokens=9, decoding=DecodingOptions(num_beams=2))
    explanation = explainer.explain(PICTURE, options, question=None)
    assert explanation.caption.tokens == plain.caption(PICTURE, options).tokens


def test_a_question_needs_a_head_that_answers(opened: Any) -> None:
    _, explainer = opened
    with pytest.raises(Exception, match="no answer head"):
        explainer.explain(PICTURE, question="what is it?")


@pytest.mark.parametrize(
    ("positions", "size", "grid", "extra"),
    [
        (64, (192, 192), (8, 8), 0),
        (197, (224, 224), (14, 14), 1),
        (198, (224, 224), (14, 14), 2),
        (577, (384, 384), (24, 24), 1),
        (1200, (1280, 960), (40, 30), 0),
    ],
)
def test_grids(positions: int, size: tuple[int, int], grid: tuple[int, int], extra: int) -> None:
    assert grid_of(positions, *size) == (grid, extra)


def test_positions_that_form_no_grid() -> None:
    with pytest.raises(UnsupportedError, match="do not form a grid"):
        grid_of(32, 224, 224)


@given(seed=st.integers(0, 2**32 - 1), prefix=st.integers(1, 5), count=st.integers(1, 5))
def test_rollout_is_the_product_of_whole_matrices(seed: int, prefix: int, count: int) -> None:
    random = np.random.default_rng(seed)
    total = prefix + count
    layers, product = [], np.eye(total)
    for _ in range(3):
        layer = random.random((count, total))
        layer[:, prefix:] *= np.tri(count)
        layer /= layer.sum(axis=1, keepdims=True)
        layers.append(layer)
        whole = np.eye(total)
        whole[prefix:] = 0.5 * layer + 0.5 * np.eye(total)[prefix:]
        product = whole @ product
    np.testing.assert_allclose(rollout(layers, prefix), product[prefix:], atol=1e-12)


PIECES = {0: "", 1: "a", 2: " cat", 3: " ca", 4: "t", 5: ".", 6: " é"}


def _decode(ids: Any) -> str:
    return "".join(PIECES[i] for i in ids)


def test_tokens_are_gathered_into_words() -> None:
    assert words_of([0, 1, 3, 4, 2, 0, 0], _decode) == [
        ("a", range(1, 2)),
        ("cat", range(2, 4)),
        ("cat", range(4, 5)),
    ]


@given(st.lists(st.sampled_from(sorted(PIECES)), max_size=12))
def test_words_cover_the_text_in_order(tokens: list[int]) -> None:
    found = words_of(tokens, _decode)
    assert [word for word, _ in found] == _decode(tokens).split()
    for (_, one), (_, other) in pairwise(found):
        assert one.start < one.stop == other.start
    for word, places in found:
        assert _decode(tokens[places.start : places.stop]).strip() == word
