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
from primelens.errors import ImageError, InputError, UnsupportedError
from primelens.export.bundle_writer import write_draft
from primelens.export.kept_states import encoder_outputs, inputs_embeds, kept_tower
from primelens.export.lock import identify

from .conftest import OPTIONS, Work

TAP = "last_hidden_state"


@pytest.fixture(scope="module")
def work(works: Callable[[str], Work]) -> Work:
    return works("tiny-vitgpt2")


def found_again(work: Work, home: Path) -> list[Any]:
    """The work's pictures, kept by one model and found by another."""
    folder = home / "bundle"
    folder.mkdir()
    write_draft(work.draft, folder, OPTIONS)
    pictures = [np.asarray(picture) for picture in work.answers["caption"].pictures]
    options, kept = LoadOptions(threads=1), CacheOptions(home / "kept")
    primelens.load(folder, options=options, cache=kept).caption(pictures)
    images: list[Any] = list(
        primelens.load(folder, options=options, cache=kept).encode_batch(pictures)
    )
    assert [image.cache for image in images] == ["hit"] * len(pictures)
    return images


def test_generate_says_the_same_from_kept_embeddings(work: Work, tmp_path: Path) -> None:
    images = found_again(work, tmp_path)
    identity = identify(work.folder).taps[TAP]
    model = work.checkpoint.model
    outputs = encoder_outputs(images, identity=identity)
    pixels = torch.from_numpy(work.answers["caption"].pixels)
    for beams in (1, 3):
        ours = model.generate(encoder_outputs=outputs, num_beams=beams, **SETTINGS)
        theirs = model.generate(pixel_values=pixels, num_beams=beams, **SETTINGS)
        assert ours.tolist() == theirs.tolist()


SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def test_a_language_model_takes_kept_embeddings_in_front_of_the_text(
    works: Callable[[str], Work], tmp_path: Path
) -> None:
    work = works("tiny-blip2-opt")
    images = found_again(work, tmp_path)
    identity = identify(work.folder).taps[TAP]
    model = work.checkpoint.model
    pixels = torch.from_numpy(work.answers["caption"].pixels)
    count, start = model.config.num_query_tokens, model.config.text_config.bos_token_id
    text = torch.tensor([[start, 5 + number, 9] for number in range(len(images))])
    picture = torch.full((len(images), count), model.config.image_token_index)
    for beams in (1, 3):
        settings = {**SETTINGS, "num_beams": beams}
        ours = model.language_model.generate(
            **inputs_embeds(model, images, identity=identity), **settings
        )
        theirs = model.generate(pixels, **settings)
        assert ours.tolist() == theirs[:, count + 1 :].tolist()
        ours = model.language_model.generate(
            **inputs_embeds(model, images, identity=identity, input_ids=text), **settings
        )
        theirs = model.generate(pixels, input_ids=torch.cat([picture, text], dim=1), **settings)
        assert ours.tolist() == theirs[:, count + 3 :].tolist()
    with pytest.raises(InputError, match="the model's is eeeeeeeeeeee"):
        inputs_embeds(model, images, identity="e" * 64)


@pytest.mark.parametrize("name", ["tiny-git", "tiny-blip2-opt"])
def test_a_model_that_takes_pixels_only_has_its_tower_replaced(
    works: Callable[[str], Work], tmp_path: Path, name: str
) -> None:
    work = works(name)
    images = found_again(work, tmp_path)
    identity = identify(work.folder).taps[TAP]
    model = work.checkpoint.model
    pixels = torch.from_numpy(work.answers["caption"].pixels)
    for beams in (1, 3):
        settings = {**SETTINGS, "num_beams": beams}
        with kept_tower(model, images, identity=identity) as numbers:
            ours = model.generate(pixel_values=numbers, **settings)
            backwards = model.generate(pixel_values=numbers.flip(0), **settings)
        theirs = model.generate(pixel_values=pixels, **settings)
        assert ours.tolist() == theirs.tolist()
        assert backwards.tolist() == theirs.flip(0).tolist() != theirs.tolist()


def test_a_model_of_another_kind_is_refused(work: Work) -> None:
    with pytest.raises(UnsupportedError, match="takes no picture as inputs_embeds"):
        inputs_embeds(work.checkpoint.model, [], identity="e" * 64)
    with (
        pytest.raises(UnsupportedError, match="is not known"),
        kept_tower(work.checkpoint.model, [], identity="e" * 64),
    ):
        pass


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
