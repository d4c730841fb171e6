"""Whatever says something about pictures: a bundle, or a result file that somebody else wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from primelens.errors import ImageError, InputError
from primelens.results import EncodedImage, Failure
from primelens.tune.data import Example

if TYPE_CHECKING:
    from primelens.model import Model

__all__ = [
    "Predictions",
    "Progress",
    "caption_examples",
    "is_result_file",
    "pooled",
    "require_all",
]

Floats = NDArray[np.float32]
Progress = Callable[[int], object]
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a system said.

    Attributes:
        name: of the system.
        texts: id → caption or answer.
        embeddings: id → pooled tower vector ``[C]``, where a tower ran.
        broken: id → why the picture could not be read.
        digests: id → SHA-256 of the picture's bytes, where a tower ran.
        tower: the identity of the tower at its tap, where one ran.
    """

    name: str
    texts: dict[str, str]
    embeddings: dict[str, Floats]
    broken: dict[str, str]
    digests: dict[str, str]
    tower: str | None = None


def caption_examples(
    model: Model,
    examples: Iterable[Example],
    *,
    speak: bool = True,
    progress: Progress | None = None,
) -> Predictions:
    """Caption every example once; the tower runs once per picture, for caption and embedding.

    Args:
        model: a loaded bundle.
        examples: consumed lazily, a few at a time.
        speak: without, only the embeddings are made.
        progress: called with the number of pictures done since the last call.
    """
    texts: dict[str, str] = {}
    embeddings: dict[str, Floats] = {}
    broken: dict[str, str] = {}
    digests: dict[str, str] = {}
    identity = None
    iterator = iter(examples)
    while chunk := list(islice(iterator, _BATCH)):
        encoded: dict[str, EncodedImage] = {}
        for example in chunk:
            try:
                encoded[example.id] = model.encode(example.image.read())
            except ImageError as error:
                broken[example.id] = f"{example.image.name}: {error.message}"
        said = model.caption_batch(encoded.values(), batch_size=_BATCH) if speak else ()
        for key, result in zip(encoded, said, strict=speak):
            if isinstance(result, Failure):
                raise result.error
            texts[key] = result.text
        for key, image in encoded.items():
            tap, embeddings[key] = pooled(image)
            digests[key] = image.source
            identity = image.identities.get(tap)
        if progress is not None:
            progress(len(chunk))
    return Predictions(model.name, texts, embeddings, broken, digests, identity)


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
