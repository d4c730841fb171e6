"""Whatever says something about pictures: a bundle, or a result file that somebody else wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from primelens.errors import ImageError, InputError
from primelens.results import EncodedImage
from primelens.tune.data import Example
from primelens.tune.evaluation.speakers import Speaker

__all__ = [
    "Predictions",
    "Progress",
    "answer_examples",
    "caption_examples",
    "encoded_chunks",
    "is_result_file",
    "pooled",
    "require_all",
]

Floats = NDArray[np.float32]
Progress = Callable[[int], object]
_BATCH = 8
_QUESTIONS = 32


@dataclass(eq=False)
class Predictions:
    """What a system said; filled while it speaks.

    Attributes:
        name: of the system.
        texts: id → caption or answer.
        embeddings: id → a vector of the picture, where a tower ran: pooled tower states ``[C]``, or
            what a rank head makes of them ``[D]``.
        broken: id → why the picture could not be read.
        digests: id → SHA-256 of the picture's bytes, where a tower ran.
        tower: the identity of the tower at its tap, where one ran.
    """

    name: str
    texts: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, Floats] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    tower: str | None = None


def caption_examples(
    system: Speaker,
    examples: Iterable[Example],
    *,
    speak: bool = True,
    progress: Progress | None = None,
) -> Predictions:
    """Caption every example once; the tower runs once per picture, for caption and embedding.

    Args:
        system: a loaded bundle.
        examples: consumed lazily, a few at a time.
        speak: without, only the embeddings are made.
        progress: called with the number of pictures done since the last call.
    """
    found = Predictions(system.name)
    for chunk in encoded_chunks(system, examples, found, progress):
        if speak:
            said = system.captions([image for _, image in chunk])
            found.texts.update(zip((example.id for example, _ in chunk), said, strict=True))
        for example, image in chunk:
            _, found.embeddings[example.id] = pooled(image)
    return found


def answer_examples(
    system: Speaker, examples: Iterable[Example], progress: Progress | None = None
) -> Predictions:
    """Answer every question once; the tower runs once per picture.

    Args:
        system: a loaded bundle.
        examples: with questions; consumed lazily, a few at a time.
        progress: called with the number of pictures done since the last call.
    """
    found = Predictions(system.name)
    for chunk in encoded_chunks(system, examples, found, progress):
        asked = [(image, q) for example, image in chunk for q in example.questions]
        said = system.answers([(image, q.text) for image, q in asked], _QUESTIONS)
        found.texts.update(zip((q.id for _, q in asked), said, strict=True))
    return found


def encoded_chunks(
    system: Speaker,
    examples: Iterable[Example],
    found: Predictions,
    progress: Progress | None = None,
) -> Iterator[list[tuple[Example, EncodedImage]]]:
    """The examples whose pictures can be read, encoded, a few at a time.

    What is known of the pictures goes into ``found``: its ``broken``, ``digests`` and ``tower``.
    """
    iterator = iter(examples)
    while chunk := list(islice(iterator, _BATCH)):
        read = []
        for example in chunk:
            try:
                image = system.model.encode(example.image.read())
            except ImageError as error:
                found.broken[example.id] = f"{example.image.name}: {error.message}"
                continue
            read.append((example, image))
            found.digests[example.id] = image.source
            found.tower = image.identities.get(pooled(image)[0])
        if read:
            yield read
        if progress is not None:
            progress(len(chunk))


def pooled(image: EncodedImage) -> tuple[str, Floats]:
    """The tap that was pooled, and its vector ``[C]`` of length 1.

    The pooled tap of a dual encoder is taken as it is; of patch states ``[L, C]`` the mean.
    """
    tap, states = min(image.taps.items(), key=lambda item: (item[1].ndim, item[0]))
    vector = states.reshape(-1, states.shape[-1]).mean(axis=0, dtype=np.float64)
    return tap, (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def require_all(
    predictions: Predictions, wanted: Sequence[str], what: str = "pictures"
) -> list[str]:
    """The texts for ``wanted``, in that order.

    Raises:
        InputError: one is missing. A score over those that happen to be there would flatter.
    """
    missing = [key for key in wanted if key not in predictions.texts]
    if missing:
        raise InputError(
            f"{predictions.name} says nothing of {len(missing)} of {len(wanted)} {what}, "
            f"for example {missing[0]!r}.",
            remedy="A system is scored on all of them or not at all.",
        )
    return [predictions.texts[key] for key in wanted]


def is_result_file(name: str | Path) -> bool:
    """Whether a system is named by a result file and not by a bundle."""
    return str(name).endswith(".json")
