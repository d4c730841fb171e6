"""BLEU-1 to 4, ROUGE-L and CIDEr-D of captions, as the COCO caption evaluation computes them.

Sources: Papineni et al. 2002, Lin 2004, Vedantam et al. 2015, and the behaviour of the official
code (``pycocoevalcap``), whose numbers these equal. Candidates and references are token lists,
usually from `primelens.tune.metrics.ptb.tokenize`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from primelens.tune.metrics.ngrams import (
    ORDERS,
    Cells,
    Integers,
    NgramCorpus,
    Tokens,
    index_corpus,
)
from primelens.tune.metrics.tally import Floats, Tally, mean_tally

__all__ = ["bleu", "caption_tallies", "cider_d", "longest_common_subsequence", "rouge_l"]

# The official scorer's guards against 0 / 0; they decide what an empty caption scores.
_SMALL, _TINY = 1e-9, 1e-15

ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0


def caption_tallies(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> list[Tally]:
    """BLEU, ROUGE-L and CIDEr-D of N candidates against each image's references."""
    corpus = index_corpus(candidates, references)
    return [_bleu(corpus), rouge_l(candidates, references), _cider_d(corpus)]


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
    """BLEU-1 to BLEU-4 of the corpus.

    The brevity penalty sums, over images, the length of the reference that is closest to the
    candidate's; of two equally close ones the shorter.
    """
    return _bleu(index_corpus(candidates, references))


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
    """CIDEr-D: n = 1 to 4, σ = 6, times 10; a sentence's length is its number of bigrams.

    Document frequencies come from these references; a bootstrap of the tally keeps them fixed.
    """
    return _cider_d(index_corpus(candidates, references))


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
    """ROUGE-L with β = 1.2; the best precision and the best recall may be of two references."""
    pairs = zip(candidates, references, strict=True)
    return mean_tally("ROUGE-L", np.array([_rouge_l(own, others) for own, others in pairs]))


def longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence of two token lists.

    One bit per token of ``second``; every token of ``first`` costs a few operations on one integer
    (Hyyrö 2004).
    """
    positions: dict[str, int] = {}
    for place, token in enumerate(second):
        positions[token] = positions.get(token, 0) | 1 << place
    full = (1 << len(second)) - 1
    rows = full
    for token in first:
        match = rows & positions.get(token, 0)
        rows = ((rows + match) | (rows - match)) & full
    return len(second) - rows.bit_count()


def _rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    own = candidate or [""]  # the official code splits at spaces, which gives "" one empty token
    precision = recall = 0.0
    for reference in references:
        other = reference or [""]
        common = longest_common_subsequence(own, other)
        precision = max(precision, common / len(own))
        recall = max(recall, common / len(other))
    if not precision or not recall:
        return 0.0
    squared = ROUGE_BETA**2
    return (1 + squared) * precision * recall / (recall + squared * precision)


def _bleu(corpus: NgramCorpus) -> Tally:
    images = len(corpus.candidate_lengths)
    cells, matches = corpus.candidates, corpus.matches
    allowed = np.zeros(len(cells.gram), np.int64)  # the most that one reference has of it
    found = matches >= 0
    np.maximum.at(allowed, matches[found], corpus.references.count[found])
    clipped = np.minimum(cells.count, allowed)
    correct = np.bincount(
        cells.image * ORDERS + cells.order, weights=clipped, minlength=images * ORDERS
    ).reshape(images, ORDERS)
    lengths = corpus.candidate_lengths
    guesses = np.maximum(lengths[:, None] - np.arange(ORDERS), 0)
    rows = np.column_stack([correct, guesses, lengths, _closest_lengths(corpus)])
    return Tally(tuple(f"BLEU-{n + 1}" for n in range(ORDERS)), rows.astype(float), _finish_bleu)


def _closest_lengths(corpus: NgramCorpus) -> Floats:
    lengths, image = corpus.reference_lengths, corpus.reference_image
    distance = np.abs(lengths - corpus.candidate_lengths[image])
    order = np.lexsort((lengths, distance, image))
    first = np.unique(image[order], return_index=True)[1]
    return lengths[order][first].astype(np.float64)


def _finish_bleu(sums: Floats) -> Floats:
    correct, guesses = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    length, reference = sums[..., -2:-1], sums[..., -1:]
    product = np.cumprod((correct + _TINY) / (guesses + _SMALL), axis=-1)
    scores = product ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + _TINY) / (reference + _SMALL)
    # An empty candidate has a ratio of about 0, and exp(1 - 1/ratio) underflows to the 0 it means.
    penalty = np.exp(np.minimum(1 - 1 / ratio, 0.0))
    return np.asarray(scores * penalty, np.float64)


def _cider_d(corpus: NgramCorpus) -> Tally:
    images = len(corpus.candidate_lengths)
    pairs = corpus.references.image * corpus.grams + corpus.references.gram
    gram_of_pair = np.unique(pairs) % max(corpus.grams, 1)
    frequency = np.bincount(gram_of_pair, minlength=corpus.grams)
    rarity = np.log(float(images)) - np.log(np.maximum(frequency, 1.0))
    own, own_norms = _weigh(corpus.candidates, rarity, images)
    other, other_norms = _weigh(corpus.references, rarity, len(corpus.reference_lengths))
    found = corpus.matches >= 0
    cells = corpus.references
    product = np.minimum(own[corpus.matches[found]], other[found]) * other[found]
    dots = np.bincount(
        cells.sentence[found] * ORDERS + cells.order[found],
        weights=product,
        minlength=other_norms.size,
    ).reshape(other_norms.shape)
    dots = dots.astype(np.float64)  # bincount of nothing counts in integers, weights or not
    norms = own_norms[corpus.reference_image] * other_norms
    cosines = np.divide(dots, norms, out=dots.copy(), where=norms != 0)
    gap = _bigrams(corpus.candidate_lengths)[corpus.reference_image] - _bigrams(
        corpus.reference_lengths
    )
    penalty = np.exp(-(gap.astype(np.float64) ** 2) / (2 * CIDER_SIGMA**2))
    similarity = cosines.mean(axis=1) * penalty
    sums = np.bincount(corpus.reference_image, weights=similarity, minlength=images)
    own_references = np.bincount(corpus.reference_image, minlength=images)
    return mean_tally("CIDEr-D", CIDER_SCALE * sums / own_references)


def _weigh(cells: Cells, rarity: Floats, sentences: int) -> tuple[Floats, Floats]:
    """tf-idf weight of every cell, and the norms ``[sentences, ORDERS]``."""
    weights = cells.count * rarity[cells.gram]
    squares = np.bincount(
        cells.sentence * ORDERS + cells.order, weights=weights**2, minlength=sentences * ORDERS
    )
    return weights, np.sqrt(squares).reshape(sentences, ORDERS)


def _bigrams(lengths: Integers) -> Integers:
    return np.maximum(lengths - 1, 0)
