"""Augmentation: declared, drawn the same for ever, and doing what it says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from primelens.errors import InputError
from primelens.tune.data.augmentation import (
    OPERATIONS,
    Augmentation,
    ColourJitter,
    HorizontalFlip,
    RandAugment,
    RandomResizedCrop,
)


def noise(width: int = 24, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


ALL = Augmentation(
    (RandomResizedCrop(12), HorizontalFlip(), ColourJitter(0.4, 0.4, 0.4), RandAugment()), seed=3
)


def test_the_same_key_and_epoch_give_the_same_pixels() -> None:
    picture = noise()
    looks = {(k, e): ALL(picture, k, e).tobytes() for k in ("a", "b") for e in range(3)}
    assert looks == {(k, e): ALL(picture, k, e).tobytes() for k, e in reversed(looks)}
    assert len(set(looks.values())) == 6  # another key or epoch looks different
    assert Augmentation(ALL.steps, seed=4)(picture, "a").tobytes() != looks["a", 0]


def test_the_given_picture_stays_as_it_is() -> None:
    picture = noise()
    before = picture.tobytes()
    for epoch in range(20):
        ALL(picture, "a", epoch)
    assert picture.tobytes() == before


def test_views_come_round_and_only_they_allow_kept_features() -> None:
    two = Augmentation(ALL.steps, views=2)
    looks = [two(noise(), "a", epoch).tobytes() for epoch in range(4)]
    assert looks[:2] == looks[2:]
    assert looks[0] != looks[1]
    assert [a.features_can_be_kept for a in (two, ALL, Augmentation())] == [True, False, True]


def test_nothing_declared_changes_nothing() -> None:
    assert Augmentation()(noise(), "a").tobytes() == noise().tobytes()
    assert Augmentation()(noise().convert("L"), "a").mode == "RGB"


def test_a_declaration_comes_back_from_json() -> None:
    data = json.loads(json.dumps(ALL.to_dict()))
    assert Augmentation.from_dict(data) == ALL
    assert Augmentation.from_dict({}) == Augmentation()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"step": []}, "unknown key 'step'"),
        ({"steps": [{"step": "blur"}]}, "unknown step 'blur'"),
        ({"steps": [{"step": "horizontal_flip", "p": 1}]}, "unknown key 'p'"),
        ({"steps": [{"step": "horizontal_flip", "probability": "1"}]}, "not a number"),
        ({"steps": [{"step": "horizontal_flip", "probability": 2}]}, "probability is out of range"),
        ({"steps": [{"step": "random_resized_crop"}]}, "size"),
        ({"steps": [{"step": "random_resized_crop", "size": 0}]}, "size is out of range"),
        ({"steps": [{"step": "rand_augment", "magnitude": 11}]}, "magnitude is out of range"),
        ({"steps": [{"step": "colour_jitter", "contrast": -1}]}, "contrast is out of range"),
        ({"views": 0}, "views is out of range"),
        ({"views": "2"}, "views is '2', not a whole number"),
        ({"seed": None}, "seed is None, not a whole number"),
    ],
)
def test_a_wrong_declaration_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Augmentation.from_dict(data)


def test_a_flip_exchanges_left_and_right_as_often_as_declared() -> None:
    picture = noise()
    mirrored = np.asarray(picture)[:, ::-1]
    flipped = [
        np.array_equal(np.asarray(Augmentation((HorizontalFlip(0.25),))(picture, str(k))), mirrored)
        for k in range(400)
    ]
    assert 0.18 < np.mean(flipped) < 0.32
    assert np.array_equal(Augmentation((HorizontalFlip(1.0),))(picture, "a"), mirrored)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 1), st.floats(1, 3), st.integers(0, 99)
)
def test_a_crop_lies_inside_and_has_the_declared_area_and_shape(
    width: int, height: int, least: float, stretch: float, seed: int
) -> None:
    step = RandomResizedCrop(8, least_area=least, most_stretch=stretch)
    left, top, right, bottom = step._box((width, height), np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    # Whole pixels move shape and area by up to half a pixel a side.
    assert (w - 0.5) / (h + 0.5) <= stretch + 1e-9
    assert (h - 0.5) / (w + 0.5) <= stretch + 1e-9
    if min(width, height) > 20 and max(width, height) / min(width, height) <= stretch:
        assert (w + 0.5) * (h + 0.5) >= least * width * height - 1e-6
    assert step.apply(noise(width, height), np.random.default_rng(0)).size == (8, 8)


def test_colour_jitter_by_hand() -> None:
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    seen = {
        Augmentation((ColourJitter(brightness=0.5),))(grey, str(k)).getpixel((0, 0))[0]  # type: ignore[index]
        for k in range(200)
    }
    assert min(seen) in range(50, 60)
    assert max(seen) in range(141, 151)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_size_and_grows_with_its_strength(name: str) -> None:
    picture = Image.linear_gradient("L").resize((32, 24)).convert("RGB")
    picture.paste((200, 40, 90), (4, 5, 15, 17))
    original = np.asarray(picture, int)

    def change(strength: float) -> float:
        found = OPERATIONS[name](picture, strength)
        assert (found.size, found.mode) == (picture.size, "RGB")
        return float(np.abs(np.asarray(found, int) - original).mean())

    if name in ("identity", "auto_contrast", "equalise"):
        assert change(0.1) == change(1)
    else:
        assert change(0) < 1.5
        assert change(0.3) < change(0.9)
        assert change(-0.9) > 0
