"""VQA accuracy with the official normalisation, and token F1.

Source: the evaluation code of the VQA challenge (Antol et al. 2015), whose quirks are kept because
published numbers contain them:

* answers are normalised only where the annotators disagree; where all say the same word for word,
  the given answer must equal it as it stands;
* a comma between two digits anywhere makes every punctuation mark vanish instead of turning into a
  space;
* the rule that was to keep a decimal point looks for the characters ``<=`` and a digit *ahead* (a
  look-behind was meant), so a point goes wherever no digit follows it, also after a digit; at most
  32 points go, because a flag is passed in the place of a count;
* ``none`` is the number 0, and ten is the last word that is a number;
* ``somebody'd`` loses its apostrophe, and ``im`` and ``ive`` gain none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from primelens.errors import InputError
from primelens.tune.metrics.tally import Tally, check_lengths, mean_tally

__all__ = [
    "normalise_answer",
    "token_f1",
    "token_f1_tally",
    "vqa_accuracy",
    "vqa_accuracy_tally",
]

# Each is found where exactly one of its apostrophes was left out.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, char in enumerate(word)
    if char == "'"
} | {"somebody'd": "somebodyd"}

_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(value) for value, word in enumerate(_COUNTED.split())} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_POINT_WITHOUT_DIGIT = re.compile(r"\.(?!\d)")
_MOST_POINTS = 32
_ENOUGH = 3


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Accuracy of one answer: mean over annotators of min(1, matches among the others / 3).

    Raises:
        InputError: there is no annotator's answer.
    """
    if not annotators:
        raise InputError("A question without an annotator's answer cannot be scored.")
    given, truth = _flat(answer), [_flat(other) for other in annotators]
    if len(set(truth)) > 1:
        given, truth = normalise_answer(given), [normalise_answer(other) for other in truth]
    matches = [other == given for other in truth]
    total = sum(matches)
    return sum(min(1.0, (total - own) / _ENOUGH) for own in matches) / len(matches)


def vqa_accuracy_tally(
    answers: Sequence[str], annotators: Sequence[Sequence[str]], image: Sequence[int]
) -> Tally:
    """VQA accuracy over questions, one row per image.

    Args:
        answers: ``[Q]``.
        annotators: ``[Q]``, each question's answers (ten in VQAv2).
        image: ``[Q]``, the row of the picture that each question is about, 0 to N - 1.
    """
    check_lengths("answers", len(answers), "questions", len(annotators))
    scores = [vqa_accuracy(own, truth) for own, truth in zip(answers, annotators, strict=True)]
    return _by_image("VQA accuracy", scores, image)


def token_f1(answer: str, truths: Sequence[str]) -> float:
    """Best F1 over the truths of the normalised answer's words, as multisets.

    Two answers without a word agree; one alone scores 0.
    """
    own = normalise_answer(answer).split()
    return max(_f1(own, normalise_answer(truth).split()) for truth in truths)


def token_f1_tally(
    answers: Sequence[str], truths: Sequence[Sequence[str]], image: Sequence[int]
) -> Tally:
    """Token F1 over questions, one row per image; arguments as of `vqa_accuracy_tally`."""
    check_lengths("answers", len(answers), "questions", len(truths))
    scores = [token_f1(own, truth) for own, truth in zip(answers, truths, strict=True)]
    return _by_image("token F1", scores, image)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and number words."""
    words = _strip_punctuation(_flat(text)).lower().split()
    kept = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept if word not in _ARTICLES)


def _flat(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    stripped = text
    everywhere = _COMMA_BETWEEN_DIGITS.search(text) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or everywhere else " ")
    return _POINT_WITHOUT_DIGIT.sub("", stripped, count=_MOST_POINTS)


def _f1(own: Sequence[str], truth: Sequence[str]) -> float:
    if not own or not truth:
        return float(not own and not truth)
    common = (Counter(own) & Counter(truth)).total()
    return 2 * common / (len(own) + len(truth))


def _by_image(name: str, scores: Sequence[float], image: Sequence[int]) -> Tally:
    check_lengths("image numbers", len(image), "questions", len(scores))
    rows = np.asarray(image, np.int64)
    counts = np.bincount(rows).astype(np.float64)
    if not counts.all():
        raise InputError(f"Image number {int(counts.argmin())} has no question.")
    return mean_tally(name, np.bincount(rows, weights=scores), counts)
