"""Recall at K between images and captions, and zero-shot classification with prompt templates.

Ties count against the system: an item that scores the same as the right one is ranked before it, so
that a model which says the same of everything gets no recall.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from primelens.errors import InputError
from primelens.tune.metrics.tally import Floats, Tally, check_lengths, mean_tally

__all__ = ["class_embeddings", "fill_templates", "retrieval_tallies", "zero_shot_tallies"]

# Rows of the score matrix that are held at once.
_ROWS = 1024


def retrieval_tallies(
    images: ArrayLike,
    captions: ArrayLike,
    owner: Sequence[int],
    *,
    at: Sequence[int] = (1, 5, 10),
) -> list[Tally]:
    """R@K both ways, by cosine.

    Image→text hits if any own caption is in the top K; text→image hits if the own image is. The
    gallery stays whole under resampling.

    Args:
        images: ``[N, D]``.
        captions: ``[T, D]``.
        owner: ``[T]``, the image's row of every caption; every image has one or more.
        at: the Ks.

    Raises:
        InputError: shapes do not fit, or an image has no caption.
    """
    image, text = _normalised("images", images), _normalised("captions", captions)
    check_lengths("owners", len(owner), "captions", len(text))
    own = np.asarray(owner, np.int64)
    counts = np.bincount(own, minlength=len(image)).astype(np.float64)
    if len(counts) != len(image) or not counts.all():
        raise InputError(f"Each of the {len(image)} images needs a caption of its own.")
    text_rank = np.concatenate(
        [
            _rank(text[rows] @ image.T, own[rows, None] == np.arange(len(image)))
            for rows in _chunks(len(text))
        ]
    )
    image_rank = np.concatenate(
        [
            _rank(image[rows] @ text.T, np.arange(len(image))[rows, None] == own)
            for rows in _chunks(len(image))
        ]
    )
    tallies = [mean_tally(f"image→text R@{k}", (image_rank < k).astype(float)) for k in at]
    for k in at:
        hits = np.bincount(own, weights=(text_rank < k).astype(float), minlength=len(image))
        tallies.append(mean_tally(f"text→image R@{k}", hits, counts))
    return tallies


def fill_templates(templates: Sequence[str], name: str) -> list[str]:
    """The prompts of one class.

    Args:
        templates: each holds ``{}`` where the name goes, as ``a photo of a {}.``
        name: the class's name.

    Raises:
        InputError: a template has no place for the name, or there is no template.
    """
    if not templates:
        raise InputError("Zero-shot classification needs at least one template.")
    for template in templates:
        if "{}" not in template:
            raise InputError(
                f"The template {template!r} has no place for the class.", remedy="Put {} there."
            )
    return [template.replace("{}", name) for template in templates]


def class_embeddings(prompts: Sequence[ArrayLike]) -> Floats:
    """``[C, D]``: per class the mean of its normalised prompt embeddings, normalised again."""
    return _normalised(
        "classes", np.stack([_normalised("prompts", own).mean(axis=0) for own in prompts])
    )


def zero_shot_tallies(
    images: ArrayLike, classes: ArrayLike, labels: Sequence[int], *, at: Sequence[int] = (1, 5)
) -> list[Tally]:
    """Top-K accuracy of the class whose embedding is nearest by cosine.

    Args:
        images: ``[N, D]``.
        classes: ``[C, D]``, from `class_embeddings`.
        labels: ``[N]``, rows of ``classes``.
        at: the Ks.
    """
    image, anchors = _normalised("images", images), _normalised("classes", classes)
    check_lengths("labels", len(labels), "images", len(image))
    own = np.asarray(labels, np.int64)
    if own.min() < 0 or own.max() >= len(anchors):
        raise InputError(f"A label lies outside the {len(anchors)} classes.")
    rank = np.concatenate(
        [
            _rank(image[rows] @ anchors.T, own[rows, None] == np.arange(len(anchors)))
            for rows in _chunks(len(image))
        ]
    )
    return [mean_tally(f"top-{k}", (rank < k).astype(float)) for k in at]


def _normalised(what: str, vectors: ArrayLike) -> Floats:
    array = np.asarray(vectors, np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"The embeddings of {what} have shape {array.shape}, not [rows, width].")
    if not np.isfinite(array).all():
        raise InputError(f"The embeddings of {what} are not finite.")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(array / np.maximum(norms, 1e-12), np.float64)


def _rank(scores: Floats, right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[rows]``: how many wrong items score at least as well as the best right one."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(((scores >= best) & ~right).sum(axis=1), np.int64)


def _chunks(rows: int) -> list[slice]:
    return [slice(begin, begin + _ROWS) for begin in range(0, rows, _ROWS)]
