"""R@K and zero-shot accuracy by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from primelens.errors import InputError
from primelens.tune.metrics import (
    class_embeddings,
    fill_templates,
    retrieval_tallies,
    zero_shot_tallies,
)


def _scores(tallies: list[Any]) -> dict[str, float]:
    return {name: value for tally in tallies for name, value in tally.scores().items()}


def test_recall_by_hand() -> None:
    # Angles in degrees. Images at 0, 60, 120. Captions: of image 0 at 10 (nearest 0) and at 50
    # (nearest 60, own is second); of image 1 at 100 (nearest 120, own is second); of 2 at 130.
    def at(*degrees: float) -> np.ndarray:
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)

    found = _scores(
        retrieval_tallies(at(0, 60, 120), at(10, 50, 100, 130), [0, 0, 1, 2], at=(1, 2))
    )
    # Image→text: 0 → 10 (own). 60 → 50 (of image 0), then 100 (own). 120 → 130 (own).
    assert found == {
        "image→text R@1": pytest.approx(2 / 3),
        "image→text R@2": 1.0,
        "text→image R@1": 0.5,
        "text→image R@2": 1.0,
    }


def test_a_model_that_says_the_same_of_everything_recalls_nothing() -> None:
    ones = np.ones((4, 3))
    found = _scores(retrieval_tallies(ones, ones, range(4), at=(1, 3, 4)))
    assert found["image→text R@3"] == found["text→image R@3"] == 0
    assert found["image→text R@4"] == 1


def test_recall_equals_a_plain_sort_on_random_data() -> None:
    random = np.random.default_rng(3)
    images, captions = random.standard_normal((40, 8)), random.standard_normal((120, 8))
    captions += 0.6 * images[np.arange(120) % 40]
    owner = (np.arange(120) % 40).tolist()
    cosine = (images / np.linalg.norm(images, axis=1)[:, None]) @ (
        captions / np.linalg.norm(captions, axis=1)[:, None]
    ).T
    order = np.argsort(-cosine, axis=1)
    plain = np.mean([any(owner[c] == i for c in order[i, :5]) for i in range(40)])
    back = np.mean([owner[c] in np.argsort(-cosine[:, c])[:5] for c in range(120)])
    found = _scores(retrieval_tallies(images, captions, owner, at=(5,)))
    assert found == {"image→text R@5": pytest.approx(plain), "text→image R@5": pytest.approx(back)}
    assert 0.1 < plain < 0.95


def test_what_does_not_fit_is_refused() -> None:
    eye = np.eye(3)
    with pytest.raises(InputError, match="caption of its own"):
        retrieval_tallies(eye, eye, [0, 0, 1])
    with pytest.raises(InputError, match="2 owners for 3 captions"):
        retrieval_tallies(eye, eye, [0, 1])
    with pytest.raises(InputError, match="not finite"):
        retrieval_tallies(eye * np.nan, eye, [0, 1, 2])
    with pytest.raises(InputError, match="outside the 3 classes"):
        zero_shot_tallies(eye, eye, [0, 1, 3])


def test_class_embeddings_are_means_of_normalised_prompts() -> None:
    # (1, 0) and (0, 1), of lengths 1 and 9: the mean points to 45 degrees whatever the lengths are.
    found = class_embeddings([[[1.0, 0.0], [0.0, 9.0]]])
    assert found == pytest.approx(np.full((1, 2), np.sqrt(0.5)))


def test_zero_shot_by_hand() -> None:
    classes = np.eye(3)
    images = [[3.0, 2.0, 0.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    found = _scores(zero_shot_tallies(images, classes, [0, 1, 0], at=(1, 2)))
    assert found == {"top-1": pytest.approx(1 / 3), "top-2": pytest.approx(2 / 3)}


def test_templates() -> None:
    assert fill_templates(["a photo of a {}.", "{}"], "cat") == ["a photo of a cat.", "cat"]
    with pytest.raises(InputError, match="no place for the class"):
        fill_templates(["a photo"], "cat")
    with pytest.raises(InputError, match="at least one"):
        fill_templates([], "cat")
