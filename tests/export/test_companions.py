"""No result depends on its companions: real graphs, both precisions, any batch.

Tower bits, tokens and log-probabilities are those of a picture (and its prompt or question) by
itself, bit by bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import primelens
from primelens import CaptionOptions, DecodingOptions, LoadOptions
from primelens.export.bundle_writer import write_draft
from primelens.export.draft import Draft
from primelens.export.pictures import random_pictures
from primelens.export.quantise import recipe

from .conftest import OPTIONS, Work
from .rank_mutations import Drafted

_replace: Any = dataclasses.replace
PROMPTS = ["a", "a view of", "two red squares and a cat on a beach at night", "what is this?"]
LABELS = ["cat", "two dogs on a beach", "a red square", "x" * 40]
WRITERS = ["tiny-vitgpt2"]
ASKED = ["tiny-blip-vqa", "tiny-blip2-flan-t5", "tiny-blip2-t5"]  # what is read before a text
OTHER_WRITERS = [
    *ASKED,
    "tiny-git",
    "tiny-beitbart",
    "tiny-blip2-opt",
    "tiny-blip-captioning",
    "tiny-convnextbert",
    "tiny-deitroberta",
    "tiny-donut",
    "tiny-resnetgpt2",
    "tiny-swingpt2",
    "tiny-trocr",
    "tiny-trocr-sinusoidal",
    "tiny-vitbert",
]
RANKERS = ["tiny-beitroberta"]
OTHER_RANKERS = [
    "tiny-blip-itm",
    "tiny-clip",
    "tiny-lit",
    "tiny-pooledbert",
    "tiny-siglip",
    "tiny-siglip2",
    "tiny-siglip2-naflex",
    "tiny-swinbert-rank",
]
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(draft: Draft, precision: str, folder: Path) -> primelens.Model:
    """The bundle of a draft in another precision, opened; unproved."""
    steps = recipe(precision)
    draft = _replace(
        draft,
        graphs={n: ir.from_proto(ir.to_proto(g)) for n, g in draft.graphs.items()},
        heads={n: _replace(head, precision=steps.name) for n, head in draft.heads.items()},
        tower=_replace(draft.tower, variant=steps.variant),
    )
    steps.apply(draft.graphs)
    folder.mkdir()
    write_draft(draft, folder, OPTIONS)
    return primelens.load(folder, options=LoadOptions(threads=2, check="size"))


@pytest.fixture(scope="module")
def drafted(
    works: Callable[[str], Work], drafted: Callable[[str], Drafted]
) -> Callable[[str], Draft]:
    """Name of a work → its draft; that of captioners with an end token that ends texts."""

    @cache
    def of(name: str) -> Draft:
        simple = name in (*RANKERS, *OTHER_RANKERS, *ASKED)
        return drafted(name).draft if simple else works(name).draft

    return of


def pictures_for(model: primelens.Model) -> list[Any]:
    """Pictures of four sizes, one of them full of outliers."""
    size = model.preprocessing.output_size or (32, 32)
    pictures = random_pictures(4, size, 11)
    pictures[2] = np.where(pictures[2] > 127, np.uint8(255), np.uint8(0))
    return pictures


def same_taps(model: primelens.Model, pictures: list[Any], places: list[int]) -> None:
    alone = [model.encode(picture) for picture in pictures]
    together = list(model.encode_batch([pictures[k] for k in places], batch_size=len(places)))
    for place, image in zip(places, together, strict=True):
        assert isinstance(image, primelens.EncodedImage)
        for tap, values in image.taps.items():
            assert np.array_equal(values, alone[place].taps[tap]), tap


def said(caption: Any) -> Any:
    assert isinstance(caption, primelens.Caption)
    return caption.tokens, caption.token_logprobs, caption.score


def _writes(model: primelens.Model) -> None:
    pictures = pictures_for(model)
    ((name, head),) = model.manifest.writers.items()
    pairs = [(p, q) for p in range(4) for q in range(len(PROMPTS))]
    answers = head.question is not None and head.question.unasked_tokens is None
    alone: dict[Any, Any] = {}

    @QUICK
    @given(
        asked=st.lists(st.sampled_from(pairs), min_size=1, max_size=7),
        beams=st.sampled_from([1, 3]),
        size=st.integers(1, 5),
    )
    def holds(asked: list[tuple[int, int]], beams: int, size: int) -> None:
        same_taps(model, pictures, [p for p, _ in asked])
        options = CaptionOptions(
            max_new_tokens=8, head=name, decoding=DecodingOptions(num_beams=beams)
        )
        found = list(
            model.answer_batch(
                [(pictures[p], PROMPTS[q]) for p, q in asked], options, batch_size=size
            )
        )
        for (p, q), answer in zip(asked, found, strict=True):
            key = (p, q, beams)
            if key not in alone:
                alone[key] = said(model.answer(pictures[p], PROMPTS[q], options))
            assert said(answer) == alone[key]
        if answers:
            return
        shown = [pictures[p] for p, _ in asked]
        if head.kind == "caption":
            own = _replace(options, prompt=[PROMPTS[q] for _, q in asked])
            for found in (
                model.caption_batch(shown, own, batch_size=size),
                model.caption(shown, own),
            ):
                for (p, q), caption in zip(asked, found, strict=True):
                    assert said(caption) == alone[p, q, beams]
        for (p, _), caption in zip(
            asked, model.caption_batch(shown, options, batch_size=size), strict=True
        ):
            if (p, beams) not in alone:
                alone[p, beams] = said(model.caption(pictures[p], options))
            assert said(caption) == alone[p, beams]

    holds()
    assert len({value[0] for value in alone.values()}) > 4


def _ranks(model: primelens.Model) -> None:
    pictures = pictures_for(model)
    scores = ("itm", "itc") if model.rank_head().matches else ("itc",)

    @QUICK
    @given(
        places=st.lists(st.integers(0, 3), min_size=1, max_size=6),
        chosen=st.lists(st.sampled_from(LABELS), min_size=1, max_size=5, unique=True),
        size=st.integers(1, 4),
    )
    def holds(places: list[int], chosen: list[str], size: int) -> None:
        same_taps(model, pictures, places)
        shown = [pictures[k] for k in places]
        for score in scores:
            options = primelens.RankOptions(score)  # type: ignore[arg-type]
            rankings = model.rank_batch(shown, chosen, batch_size=size, options=options)
            for place, ranking in zip(places, rankings, strict=True):
                assert isinstance(ranking, primelens.Ranking)
                for label in ranking.labels:
                    one = model.rank(pictures[place], [label.label], options=options).best
                    assert one.score == label.score

    holds()


def _slow(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", [*WRITERS, *_slow(OTHER_WRITERS)])
def test_what_is_written(
    drafted: Callable[[str], Draft], name: str, precision: str, tmp_path: Path
) -> None:
    """Prompts of different lengths and pictures of different sizes in one batch."""
    _writes(written(drafted(name), precision, tmp_path / "bundle"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", [*RANKERS, *_slow(OTHER_RANKERS)])
def test_what_is_ranked(
    drafted: Callable[[str], Draft], name: str, precision: str, tmp_path: Path
) -> None:
    _ranks(written(drafted(name), precision, tmp_path / "bundle"))
