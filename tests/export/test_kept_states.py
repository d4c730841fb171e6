"""Kept embeddings in the hands of transformers: its ``generate`` without its tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import primelens
from primelens import CacheOptions, Failure, LoadOptions
from primelens.errors import ImageError, InputError
from primelens.export.bundle_writer import write_draft
from primelens.export.kept_states import encoder_outputs
from primelens.export.lock import identify

from .conftest import OPTIONS, Work

TAP = "last_hidden_state"


@pytest.fixture(scope="module")
def work(works: Callable[[str], Work]) -> Work:
    return works("tiny-vitgpt2")


def test_generate_says_the_same_from_kept_embeddings(work: Work, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_draft(work.draft, folder, OPTIONS)
    pictures = [np.asarray(picture) for picture in work.answers["caption"].pictures]
    options, kept = LoadOptions(threads=1), CacheOptions(tmp_path / "kept")
    primelens.load(folder, options=options, cache=kept).caption(pictures)
    images: list[Any] = list(
        primelens.load(folder, options=options, cache=kept).encode_batch(pictures)
    )
    assert [image.cache for image in images] == ["hit"] * len(pictures)
    identity = identify(work.folder).taps[TAP]
    model = work.checkpoint.model
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    outputs = encoder_outputs(images, identity=identity)
    pixels = torch.from_numpy(work.answers["caption"].pixels)
    for beams in (1, 3):
        ours = model.generate(encoder_outputs=outputs, num_beams=beams, **settings)
        theirs = model.generate(pixel_values=pixels, num_beams=beams, **settings)
        assert ours.tolist() == theirs.tolist()


def test_what_does_not_belong_to_the_model_is_refused(work: Work, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_draft(work.draft, folder, OPTIONS)
    image = primelens.load(folder, options=LoadOptions(threads=1)).encode(
        np.zeros((9, 9, 3), np.uint8)
    )
    identity = image.identities[TAP]
    assert encoder_outputs([image], identity=identity).last_hidden_state.shape[0] == 1
    half = encoder_outputs([image], identity=identity, dtype=torch.float16).last_hidden_state
    assert half.dtype == torch.float16
    with pytest.raises(InputError, match="the model's is eeeeeeeeeeee"):
        encoder_outputs([image], identity="e" * 64)
    with pytest.raises(InputError, match="No picture"):
        encoder_outputs([], identity=identity)
    broken = Failure("broken.jpg", ImageError("it is torn"))
    with pytest.raises(InputError, match=r"broken\.jpg: it is torn"):
        encoder_outputs([image, broken], identity=identity)
