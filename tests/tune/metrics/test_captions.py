"""BLEU, ROUGE-L and CIDEr-D: by hand, against plain loops, and against the official numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primelens.errors import InputError
from primelens.tune.metrics import bleu, caption_tallies, cider_d, rouge_l, tokenize
from primelens.tune.metrics.captions import longest_common_subsequence

# From the official code, run on the 126 captions of coco126.tok.json.
OFFICIAL = {
    "BLEU-1": 0.5854765630,
    "BLEU-2": 0.4047379859,
    "BLEU-3": 0.2825074892,
    "BLEU-4": 0.1982654397,
    "ROUGE-L": 0.4079801045,
    "CIDEr-D": 0.6277218728,
}

Corpus = tuple[list[list[str]], list[list[list[str]]]]


def words(*sentences: str) -> list[list[str]]:
    return [sentence.split() for sentence in sentences]


def read(path: Path, split: bool) -> Corpus:
    data = json.loads(path.read_text(encoding="utf-8"))
    cut = str.split if split else tokenize
    keys = list(data["gts"])
    return [cut(data["res"][k][0]) for k in keys], [[cut(x) for x in data["gts"][k]] for k in keys]


def scores(corpus: Corpus) -> dict[str, float]:
    return {name: s for tally in caption_tallies(*corpus) for name, s in tally.scores().items()}


def test_the_official_numbers_from_official_tokens(shared_data: Path) -> None:
    found = scores(read(shared_data / "coco126.tok.json", split=True))
    # The published numbers have ten digits, so half of the last one is theirs.
    assert found == pytest.approx(OFFICIAL, rel=0, abs=1e-10)


def test_the_official_numbers_from_raw_text(shared_data: Path) -> None:
    found = scores(read(shared_data / "coco126.raw.json", split=False))
    assert found == pytest.approx(OFFICIAL, rel=0, abs=1e-3)


def test_our_tokens_are_the_official_ones(shared_data: Path) -> None:
    assert read(shared_data / "coco126.raw.json", split=False) == read(
        shared_data / "coco126.tok.json", split=True
    )


def test_bleu_by_hand() -> None:
    # Unigrams: "the" is allowed twice (most in one reference), "cat" once: 3 of 4. Bigrams "the
    # the" (none), "the cat": 1 of 3. Both references are as far from length 4: the shorter, 3.
    tally = bleu(words("the the the cat"), [words("the cat sat", "the cat and the dog")])
    found = tally.scores()
    assert found["BLEU-1"] == pytest.approx(3 / 4, rel=1e-8)
    assert found["BLEU-2"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3), rel=1e-8)
    assert found["BLEU-3"] == pytest.approx((3 / 4 / 3 * 1e-15 / 2) ** (1 / 3), rel=1e-8)


def test_bleu_is_of_the_corpus_and_short_captions_pay() -> None:
    # 2 + 3 words, all right, for references of 4 + 3: the penalty is exp(1 - 7/5).
    tally = bleu(words("a b", "x y z"), [words("a b c d"), words("x y z", "x y z w w w w")])
    assert tally.scores()["BLEU-1"] == pytest.approx(math.exp(1 - 7 / 5), rel=1e-8)
    assert tally.per_image()[:, 0] == pytest.approx([math.exp(1 - 4 / 2), 1.0], rel=1e-8)


def test_rouge_takes_precision_and_recall_of_different_references() -> None:
    # Against "a b x x": 2 of 3 and 2 of 4. Against "c": 1 of 3 and 1 of 1.
    tally = rouge_l(words("a b c"), [words("a b x x", "c")])
    p, r = 2 / 3, 1.0
    assert tally.scores()["ROUGE-L"] == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p))


def test_cider_by_hand() -> None:
    # Two images; no n-gram is in both, so each weighs log 2 - log 1, which cancels in the cosine.
    # Image 0: the unigrams a, b against a, c: clipped 1 of norms √2 √2 = 1/2; bigrams 0; no longer
    # ones. Lengths are both one bigram. (1/2 + 0 + 0 + 0) / 4 * 10. Image 1: the same sentence has
    # cosine 1 for n = 1, 2, 3.
    tally = cider_d(words("a b", "d e f"), [words("a c"), words("d e f")])
    assert tally.per_image()[:, 0] == pytest.approx([10 * 0.5 / 4, 10 * 3 / 4])


def test_cider_counts_length_in_bigrams_and_punishes_the_gap() -> None:
    # "a" has no bigram, "a b c" has two: a gap of 2, not of the words 1 and 3.
    tally = cider_d(words("a", "z"), [words("a b c"), words("z")])
    expected = 10 / 4 * (1 / math.sqrt(3)) * math.exp(-(2**2) / 72)
    assert tally.per_image()[0, 0] == pytest.approx(expected)


def test_a_word_in_every_image_weighs_nothing_in_cider() -> None:
    tally = cider_d(words("a", "a"), [words("a"), words("a")])
    assert tally.scores()["CIDEr-D"] == 0


def test_empty_candidates_score_zero_and_break_nothing() -> None:
    found = scores(([[], ["a"]], [words("a b"), words("a")]))
    assert 0 <= found["BLEU-4"] < 1e-3
    assert found["ROUGE-L"] == pytest.approx(0.5)
    assert scores(([[]], [[[]]]))["CIDEr-D"] == 0


@pytest.mark.parametrize(
    ("candidates", "references", "said"),
    [
        ([["a"]], [], "1 candidates for 0"),
        ([], [], "no candidates"),
        ([["a"], ["b"]], [[["a"]], []], "Image number 1 has no reference"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    candidates: list[list[str]], references: list[list[list[str]]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        bleu(candidates, references)


def plain_cider(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """CIDEr-D with dictionaries and loops, from its definition."""

    def grams(sentence: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))

    total = 0.0
    per_image = []
    for own, others in zip(candidates, references, strict=True):
        total = 0.0
        for other in others:
            gap = max(len(own) - 1, 0) - max(len(other) - 1, 0)
            for n in range(1, 5):
                weights = {}
                for sentence in (own, other):
                    weights[id(sentence)] = {
                        gram: count
                        * (
                            math.log(len(candidates))
                            - math.log(
                                max(
                                    1,
                                    sum(any(gram in grams(r, n) for r in rs) for rs in references),
                                )
                            )
                        )
                        for gram, count in grams(sentence, n).items()
                    }
                a, b = weights[id(own)], weights[id(other)]
                dot = sum(min(w, b[g]) * b[g] for g, w in a.items() if g in b)
                norm = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
                total += (dot / norm if norm else dot) * math.exp(-(gap**2) / 72) / 4
        per_image.append(10 * total / len(others))
    return per_image


SENTENCE = st.lists(st.sampled_from("abcde"), max_size=7)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3)), min_size=1, max_size=4
    )
)
def test_cider_equals_plain_loops(pairs: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [own for own, _ in pairs], [others for _, others in pairs]
    found = cider_d(candidates, references).per_image()[:, 0]
    assert found == pytest.approx(plain_cider(candidates, references), abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(SENTENCE, SENTENCE)
def test_the_common_subsequence_equals_the_table(first: list[str], second: list[str]) -> None:
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
            )
    assert longest_common_subsequence(first, second) == table[-1, -1]
