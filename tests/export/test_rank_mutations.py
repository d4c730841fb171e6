"""Mutation tables of the ranking works that `test_rank` has none for; no small work is without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primelens.errors import PrimelensError
from primelens.export.draft import Draft
from primelens.export.work import works as all_works

from . import (
    mutations,
    test_blip,
    test_blip2_t5_mutations,
    test_blip_matching,
    test_naflex,
    test_rank,
    test_videos,
)
from . import test_prefix_heads as prefixes
from .mutation_tables import cases
from .rank_mutations import (
    Drafted,
    Mutation,
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
from .test_real_size import PUBLISHED


def tower(*names: str) -> dict[str, Mutation]:
    """Mutations of captioners' tables that look at the tower and its pictures alone."""
    nothing: Any = None
    known = {**mutations.VIT, **mutations.WINDOWS}

    def alone(change: mutations.Mutation) -> Mutation:
        def mutate(draft: Draft) -> None:
            change(draft, nothing)

        return mutate

    return {name: alone(known[name]) for name in names}


TOWER = ("blue before red", "upside down", "tower layers swapped", "tower vector changed", "mean")
READER: dict[str, Mutation] = {
    "scale": scaled(1.001),
    "padding is seen": mask_of_ones,
    "tokenizer without frame": without_frame,
    "positions": in_weight("rank.text", r"position_embeddings\.weight", rolled),
    "query bias": in_weight("rank.text", r"0\.attention\.self\.query\.bias", zero),
    "pooler transposed": in_weight("rank.text", r"pooler\.dense\.weight", np.transpose),
    "text projection": in_weight("rank.text", r"projection\.weight", rolled),
    "image projection": in_weight("rank.image", r"projection\.weight", rolled),
}
TABLES: dict[str, dict[str, Mutation]] = {
    "tiny-beitroberta": {
        **tower(*TOWER, "relative positions shifted"),
        **READER,
    },
    "tiny-swinbert-rank": {
        **tower(*TOWER, "relative positions shifted", "shifted windows unmasked"),
        **tower("tower matrices swapped", "resize filter"),
        **READER,
        "token types": in_weight("rank.text", r"token_type_embeddings\.weight", zero),
    },
    "tiny-siglip2": {
        **tower(*TOWER, "tower norm epsilon"),
        "scale": scaled(1.001),
        "bias of the scores": in_head(bias=0.0),
        "other scoring": in_head(scoring="softmax"),
        "padding on the right": in_text(pad_left=False),
        "padding is seen": in_text(masked=False),
        "text tokens": in_weight("rank.text", r"token_embedding\.weight", rolled),
        "head bias": in_weight("rank.text", r"model\.head\.bias", zero),
        "head transposed": in_weight("rank.text", r"model\.head\.weight", np.transpose),
    },
}
ELSEWHERE: dict[str, Any] = {
    **mutations.TABLES,
    **prefixes.TABLES,
    **test_blip2_t5_mutations.TABLES,
    **{name: table for name, *table in test_rank.TABLE},
    "tiny-blip-captioning": test_blip.CAPTIONS,
    "tiny-blip-vqa": test_blip.ANSWERS,
    "tiny-blip-itm": test_blip_matching.MATCHING,
    "tiny-git-video": test_videos.VIDEO,
    "tiny-siglip2-naflex": test_naflex.MUTATIONS,
}
# A small work of the same class for every published one; of pairs, one with the same tower and one
# with the same decoder.
SHRUNKEN: dict[str, tuple[str, ...]] = {
    "beitgpt2-base": ("tiny-beitbart", "tiny-vitgpt2"),
    "blip-captioning-base": ("tiny-blip-captioning",),
    "blip-itm-base": ("tiny-blip-itm",),
    "blip-vqa-base": ("tiny-blip-vqa",),
    "blip2-flan-t5-xl-short": ("tiny-blip2-flan-t5",),
    "blip2-opt-2.7b-short": ("tiny-blip2-opt",),
    "clip-base": ("tiny-clip",),
    "convnextgpt2-tiny": ("tiny-convnextbert", "tiny-vitgpt2"),
    "deitroberta-base": ("tiny-deitroberta",),
    "donut-base": ("tiny-donut",),
    "git-base": ("tiny-git",),
    "git-base-video": ("tiny-git-video",),
    "lit-base": ("tiny-lit",),
    "resnetgpt2-50": ("tiny-resnetgpt2",),
    "siglip-base": ("tiny-siglip",),
    "siglip2-base": ("tiny-siglip2",),
    "siglip2-naflex-base": ("tiny-siglip2-naflex",),
    "swinbert-tiny": ("tiny-swingpt2", "tiny-vitbert"),
    "swingpt2-base": ("tiny-swingpt2",),
    "trocr-base": ("tiny-trocr",),
    "vitbart-base": ("tiny-vitbert", "tiny-beitbart"),
    "vitbert-base": ("tiny-vitbert",),
    "vitgpt2-base": ("tiny-vitgpt2",),
}


def test_every_small_work_has_a_table() -> None:
    small = {name for name, work in all_works().items() if work.size == "small"}
    assert {name for name in small if name.startswith("tiny-")} == {*TABLES, *ELSEWHERE}


def test_every_published_work_has_small_ones_and_its_proof_is_slow() -> None:
    known = all_works()
    assert set(PUBLISHED) == SHRUNKEN.keys()
    for name, small in SHRUNKEN.items():
        work, others = known[name], [known[each] for each in small]
        assert {other.family for other in others} == {work.family}
        assert set(work.parts) <= {part for other in others for part in other.parts}
        assert {other.size for other in others} == {"small"}


@pytest.mark.parametrize("name", list(TABLES))
def test_the_unmutated_draft_passes(
    drafted: Callable[[str], Drafted], tmp_path: Path, name: str
) -> None:
    work = drafted(name)
    assert gated(work, copied(work.draft), tmp_path / "bundle").failures == []


@pytest.mark.parametrize(
    ("name", "mutation"),
    cases(TABLES),
)
def test_the_gate_catches(
    drafted: Callable[[str], Drafted], tmp_path: Path, name: str, mutation: Mutation
) -> None:
    work = drafted(name)
    draft = copied(work.draft)
    mutation(draft)
    with pytest.raises(PrimelensError) as caught:
        gated(work, draft, tmp_path / "bundle")
    assert str(caught.value)
