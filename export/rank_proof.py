"""The proof of a rank head beyond the gate: what a search service asks of it.

Zero-shot classification by an ensemble of prompts, through the shipped runtime alone and in
batches, against the same arithmetic on the source model's own embeddings in float64; and every
result alone and among others, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from primelens.export.gate import NOISE_FACTOR
from primelens.export.proof import Findings, Subject, prover
from primelens.export.rank_answers import text_spec
from primelens.options import RankOptions
from primelens.results import EncodedImage, Failure, Ranking

__all__ = ["LABELS", "TEMPLATES", "prove_rankings"]

Array = NDArray[Any]

LABELS = (
    "cat",
    "two dogs on a beach",
    "red square",
    "a bicycle leaning against the wall",
    "sea",
    "street at night",
    "hand",
    "a crowd of people with umbrellas",
)
TEMPLATES = ("a photo of {}.", "{}", "a small picture of {} in the evening", "A drawing: {}!")
_LEAST_DISTINCT = 2  # best labels over all pictures; below, the proof is blind


@prover("rank")
def prove_rankings(subject: Subject) -> Findings:
    """Rankings of all pictures, by the bare label, by one template and by the ensemble; by every
    score that the head has.
    """
    found = Findings()
    encoded = [subject.model.encode(picture) for picture in subject.pictures]
    scores: list[Literal["itc", "itm"]] = ["itc"]
    if subject.head.matching is not None:
        scores.append("itm")
        found.failures += _preselected(subject, encoded)
    for score in scores:
        bests: set[str] = set()
        for template in ("{}", TEMPLATES[0], TEMPLATES):
            bests |= _rank_all(subject, encoded, template, RankOptions(score), found)
        if len(bests) < _LEAST_DISTINCT:
            found.failures.append(f"{score} is blind: every picture has the same best label")
    found.failures += _companions(subject)
    return found


def _rank_all(
    subject: Subject,
    encoded: Sequence[EncodedImage],
    template: str | Sequence[str],
    options: RankOptions,
    found: Findings,
) -> set[str]:
    """The best labels; what differs goes into ``found``."""
    asked = {"template": template, "head": subject.name, "options": options}
    templates = [template] if isinstance(template, str) else template
    exact, limit = _expected(subject, templates, options.score)
    bests = set()
    for batch in subject.options.batches:
        rankings = list(subject.model.rank_batch(encoded, LABELS, batch_size=batch, **asked))
        for k, ranking in enumerate(rankings):
            what = f"{options.score}, picture {k}, batch {batch}"
            _compare(found, ranking, exact[k], limit, what)
        bests |= {r.best.label for r in rankings if isinstance(r, Ranking)}
    alone = subject.model.rank(encoded[0], LABELS, **asked)
    if alone.labels != rankings[0].labels:
        found.failures.append(f"{options.score}: picture 0 is ranked otherwise by itself")
    return bests


def _preselected(subject: Subject, encoded: Sequence[EncodedImage]) -> list[str]:
    """A preselection ranks the labels that "itc" holds best, with the bits of a full ranking."""
    failures = []
    for k, image in enumerate(encoded):
        by_itc, by_itm, both = (
            subject.model.rank(image, LABELS, head=subject.name, options=options).labels
            for options in (RankOptions("itc"), RankOptions("itm"), RankOptions(preselect=3))
        )
        chosen = {label.index for label in by_itc[:3]}
        if both != tuple(label for label in by_itm if label.index in chosen):
            failures.append(f"picture {k}: three preselected labels are ranked otherwise")
    return failures


def _compare(
    found: Findings, ranking: Ranking | Failure, exact: Array, limit: float, what: str
) -> None:
    if isinstance(ranking, Failure):
        found.failures.append(f"{what}: {ranking.error}")
        return
    for entry in ranking.labels:
        if not abs(entry.score - exact[entry.index]) <= limit:
            found.failures.append(
                f"{what}: {entry.label!r} scores {entry.score:.7g}, the source's float64 score is "
                f"{exact[entry.index]:.7g}; limit {limit:.3g}"
            )
    ordered = exact[[entry.index for entry in ranking.labels]]
    falls = ordered[1:] - ordered[:-1]
    found.ties += int(((falls > 0) & (falls <= 2 * limit)).sum())
    found.rankings += 1


def _expected(subject: Subject, templates: Sequence[str], score: str | None) -> tuple[Array, float]:
    """``[K, N]`` scores by the source in float64, and what rounding explains."""
    head, tokenizer = subject.head, subject.source.tokenizer
    reference: Any = head.reference
    spec: Any = text_spec(subject.source, head, "")
    prompts = [t.replace("{}", label) for label in LABELS for t in templates]
    padding = "max_length" if spec.pad_to_max else "longest"
    batch = tokenizer(prompts, padding=padding, truncation=True, max_length=spec.max_length)
    ids = np.array(batch["input_ids"], np.int64)
    mask = np.array(batch["attention_mask"], np.int64) if spec.masked else np.ones_like(ids)

    def scores() -> Array:
        tap = reference.taps(subject.pixels)[head.tap]
        if score == "itm":
            logits = reference.match(tap, ids, mask)
            matched = (logits[..., 1] - logits[..., 0]).reshape(len(tap), len(LABELS), -1)
            means: Array = matched.mean(axis=2)
            return means
        image, text, _ = reference.answer(tap, ids, mask)
        means = text.reshape(len(LABELS), len(templates), -1).mean(axis=1)
        means = means / np.linalg.norm(means, axis=1, keepdims=True)
        found: Array = head.scale * (image @ means.T) + head.bias
        return found

    single = scores()
    with reference.widen():
        exact = scores()
    return exact, NOISE_FACTOR * float(np.abs(single - exact).max())


def _companions(subject: Subject) -> list[str]:
    """What an embedding of a text owes to the texts beside it: nothing."""
    tower = subject.model.rank_head(subject.name).text
    prompts = [t.replace("{}", label) for label in LABELS for t in TEMPLATES]
    together = tower.computed(prompts)
    return [
        f"the embedding of {prompt!r} is another one among others"
        for prompt in prompts
        if not np.array_equal(tower.computed([prompt])[prompt], together[prompt])
    ]
