"""What costs no tuning at all; a model that does not beat these has learned little.

Every baseline draws on a *pool* of captioned pictures. Where the pool is the evaluated set itself,
a picture never draws on its own captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from primelens.errors import InputError
from primelens.tune.metrics import tokenize

__all__ = ["most_frequent_texts", "nearest_neighbours"]

Key = TypeVar("Key", bound=Hashable)
_ROWS = 512


def most_frequent_texts(wanted: Sequence[Key], pool: Mapping[Key, Sequence[str]]) -> list[str]:
    """For every wanted picture the text that the *other* pictures of the pool have most often.

    Texts count as equal where their tokens are. Among equally frequent ones (in small pools every
    caption occurs once) the one whose words are the most common on average is taken: the most
    typical caption.

    Args:
        wanted: ids; one that is in the pool does not draw on itself.
        pool: id → texts.

    Raises:
        InputError: nothing is left to draw from.
    """
    forms = {key: [tuple(tokenize(text)) for text in texts] for key, texts in pool.items()}
    spelled: dict[tuple[str, ...], str] = {}
    for key, texts in pool.items():
        for form, text in zip(forms[key], texts, strict=True):
            spelled.setdefault(form, text)
    counts = Counter(form for own in forms.values() for form in own)
    words = Counter(word for form, count in counts.items() for word in form * count)

    def rank(form: tuple[str, ...], count: int) -> tuple[int, float]:
        return count, sum(words[word] for word in form) / max(len(form), 1)

    ranking = sorted(counts, key=lambda form: rank(form, counts[form]), reverse=True)
    chosen = []
    for key in wanted:
        own = Counter(forms.get(key, ()))
        left = [(rank(form, counts[form] - n), form) for form, n in own.items() if counts[form] > n]
        other = next((form for form in ranking if form not in own), None)
        if other is not None:
            left.append((rank(other, counts[other]), other))
        if not left:
            raise InputError("The pool of the baselines holds no text of another picture.")
        chosen.append(spelled[max(left)[1]])
    return chosen


def nearest_neighbours(
    wanted: Sequence[Key],
    embeddings: Mapping[Key, NDArray[np.float32]],
    pool: Mapping[Key, NDArray[np.float32]],
) -> list[Key]:
    """For every wanted picture the other one of the pool with the highest cosine.

    Args:
        wanted: ids.
        embeddings: of the wanted pictures, ``[C]`` of length 1.
        pool: of the pool's, likewise.

    Raises:
        InputError: the pool holds no other picture.
    """
    keys = list(pool)
    place = {key: column for column, key in enumerate(keys)}
    if not keys or (len(keys) == 1 and keys[0] in wanted):
        raise InputError("The pool of the baselines holds no other picture.")
    anchors = np.stack([pool[key] for key in keys])
    found: list[Key] = []
    for begin in range(0, len(wanted), _ROWS):
        rows = wanted[begin : begin + _ROWS]
        cosines = np.stack([embeddings[key] for key in rows]) @ anchors.T
        for row, key in enumerate(rows):
            if key in place:
                cosines[row, place[key]] = -np.inf
        found += [keys[column] for column in cosines.argmax(axis=1)]
    return found
