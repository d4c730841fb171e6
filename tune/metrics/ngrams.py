"""All n-grams of a corpus as integer arrays, so that counting and matching is array arithmetic.

A *cell* is one distinct n-gram of one sentence with its count. Candidates and references share one
numbering of n-grams, so a candidate's cells are matched with its references' by binary search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from primelens.errors import InputError
from primelens.tune.metrics.tally import check_lengths

__all__ = ["ORDERS", "Cells", "NgramCorpus", "Tokens", "index_corpus"]

Tokens = Sequence[str]
Integers = NDArray[np.int64]

ORDERS = 4


@dataclass(frozen=True, eq=False)
class Cells:
    """Distinct n-grams of sentences, sorted by (sentence, n-gram).

    Attributes:
        sentence, image, gram, order, count: ``[K]`` int64; ``gram`` is a number in ``[0, G)``
            shared by all sentences of the corpus, ``order`` is n - 1.
    """

    sentence: Integers
    image: Integers
    gram: Integers
    order: Integers
    count: Integers


@dataclass(frozen=True, eq=False)
class NgramCorpus:
    """N candidates and their S references, counted.

    Attributes:
        candidates, references: the n-grams of both; a candidate's sentence number is its image's.
        matches: ``[len(references.gram)]``, for every reference cell the candidate cell of the same
            image and n-gram, or -1.
        candidate_lengths: ``[N]`` words.
        reference_lengths, reference_image: ``[S]`` words, and whose reference it is.
        grams: G, the number of distinct n-grams.
    """

    candidates: Cells
    references: Cells
    matches: Integers
    candidate_lengths: Integers
    reference_lengths: Integers
    reference_image: Integers
    grams: int


def index_corpus(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> NgramCorpus:
    """Count the 1- to 4-grams of candidates ``[N]`` and references ``[N]`` of one or more each.

    Raises:
        InputError: the lists differ in length, are empty, or an image has no reference.
    """
    check_lengths("candidates", len(candidates), "images' references", len(references))
    if bare := [row for row, own in enumerate(references) if not own]:
        raise InputError(f"Image number {bare[0]} has no reference, and {len(bare) - 1} others.")
    number, images = len(candidates), len(references)
    sentences = [*candidates, *chain.from_iterable(references)]
    own = np.fromiter((len(r) for r in references), np.int64, images)
    image = np.concatenate([np.arange(number), np.repeat(np.arange(images), own)])
    lengths = np.fromiter((len(s) for s in sentences), np.int64, len(sentences))
    cells, grams = _count(sentences, lengths, image)
    split = int(np.searchsorted(cells.sentence, number))
    first, rest = _part(cells, slice(None, split), 0), _part(cells, slice(split, None), number)
    keys = first.image * grams + first.gram  # one candidate per image, so each occurs once
    wanted = rest.image * grams + rest.gram
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = keys[place] == wanted if len(keys) else np.zeros(len(wanted), bool)
    return NgramCorpus(
        candidates=first,
        references=rest,
        matches=np.where(found, place, -1),
        candidate_lengths=lengths[:number],
        reference_lengths=lengths[number:],
        reference_image=image[number:],
        grams=grams,
    )


def _part(cells: Cells, rows: slice, first_sentence: int) -> Cells:
    return Cells(
        cells.sentence[rows] - first_sentence,
        cells.image[rows],
        cells.gram[rows],
        cells.order[rows],
        cells.count[rows],
    )


def _count(sentences: Sequence[Tokens], lengths: Integers, image: Integers) -> tuple[Cells, int]:
    vocabulary: dict[str, int] = {}
    words = np.fromiter(
        (vocabulary.setdefault(word, len(vocabulary)) for s in sentences for word in s),
        np.int64,
        int(lengths.sum()),
    )
    sentence = np.repeat(np.arange(len(sentences)), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)  # where each word's sentence ends
    start = np.arange(len(words))
    grams, of_sentence, of_gram, of_order = 0, [], [], []
    prefix = np.zeros(len(words), np.int64)  # number of the (n-1)-gram that starts at each word
    for order in range(ORDERS):
        start = start[start + order < ends[start]]
        keys = prefix[start] * len(vocabulary) + words[start + order]
        distinct, number = np.unique(keys, return_inverse=True)
        prefix[start] = number
        of_sentence.append(sentence[start])
        of_gram.append(number + grams)
        of_order.append(np.full(len(distinct), order))
        grams += len(distinct)
    order_of = np.concatenate(of_order) if grams else np.zeros(0, np.int64)
    keys = np.concatenate(of_sentence) * max(grams, 1) + np.concatenate(of_gram)
    cell, count = np.unique(keys, return_counts=True)
    who, gram = np.divmod(cell, max(grams, 1))
    return Cells(who, image[who], gram, order_of[gram], count), grams
