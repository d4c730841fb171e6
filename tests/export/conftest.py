"""Tiny checkpoints with randomised weights, built once, and what their sources say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from primelens.export.answers import Answers
from primelens.export.checkpoint import Checkpoint, open_checkpoint
from primelens.export.draft import Draft, draft_bundle
from primelens.export.options import ExportOptions, GateOptions
from primelens.export.pictures import as_videos, random_pictures
from primelens.export.pipeline import answers_of
from primelens.export.reference_works import build
from primelens.export.registry import ModelSplit, frames_of
from primelens.video import preprocessed

from .rank_mutations import Drafted, drafts

OPTIONS = ExportOptions(gate=GateOptions(threads=1, random_images=4, steps=24))


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Work:
    """A checkpoint, cut, drafted and questioned."""

    folder: Path
    checkpoint: Checkpoint
    split: ModelSplit
    draft: Draft
    answers: dict[str, Answers]


def choose_end_token(checkpoint: Checkpoint, texts: list[list[int]]) -> None:
    """Make a token the end token that ends some of the texts early, and not all of them."""
    suitable = [
        token
        for token in dict.fromkeys(token for text in texts for token in text)
        if any(token not in text for text in texts)
        and min(text.index(token) for text in texts if token in text) >= 3
    ]
    assert suitable, "no token ends some texts in their middle; choose another seed"
    if hasattr(checkpoint.family, "end_with"):  # whose end token is not generation_config's
        checkpoint.family.end_with(checkpoint.folder, checkpoint.model, suitable[0])
        return
    path = checkpoint.folder / "generation_config.json"
    settings = json.loads(path.read_text())
    settings["eos_token_id"] = suitable[0]
    path.write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a tiny reference work → its checkpoint folder, with an end token that ends texts."""

    @cache
    def of(name: str) -> Path:
        folder = build(name, tmp_path_factory.mktemp("checkpoints") / name, seed=0)
        checkpoint = open_checkpoint(folder)
        size = checkpoint.preprocessing.output_size
        assert size is not None
        split = checkpoint.family.split(checkpoint.model)
        pictures = as_videos(random_pictures(4, size, OPTIONS.gate.seed), frames_of(split))
        pixels = np.stack([preprocessed(checkpoint.preprocessing, one) for one in pictures])
        head = split.heads["caption"]
        length = {"max_new_tokens": 20}
        choose_end_token(checkpoint, head.reference.generate(pixels, length, plain=True))
        return folder

    return of


@pytest.fixture(scope="session")
def works(checkpoints: Callable[[str], Path]) -> Callable[[str], Work]:
    """Name of a tiny reference work → everything up to the gate, made once."""

    @cache
    def of(name: str) -> Work:
        folder = checkpoints(name)
        checkpoint = open_checkpoint(folder)
        split = checkpoint.family.split(checkpoint.model)
        draft = draft_bundle(checkpoint, split, OPTIONS)
        return Work(folder, checkpoint, split, draft, answers_of(checkpoint, split, OPTIONS.gate))

    return of


@pytest.fixture(scope="session")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drafted]:
    """Name of a work → everything up to the gate, made once; its end token stays."""
    return drafts(tmp_path_factory.mktemp("drafts"))


@pytest.fixture(scope="session")
def t5_works(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Work]:
    """Name of a BLIP-2 work with T5 → everything up to the gate, made once."""
    from .t5_works import work_of  # which needs what is above

    return cache(lambda name: work_of(tmp_path_factory.mktemp(name), name))
