"""Retrieval: a picture among the captions of all, a caption among all pictures."""

from __future__ import annotations

from collections import Counter
from functools import cache

from primelens.tune.evaluation.ranking import CHANCE, Ranked, chance_of_retrieval, looked_at
from primelens.tune.evaluation.report import Table, scored
from primelens.tune.evaluation.stage import Evaluation, Stage
from primelens.tune.metrics import Tally, retrieval_tallies

__all__ = ["retrieved"]

_AT = (1, 5, 10)


def retrieved(stage: Stage) -> Evaluation:
    """Let the systems find captions of pictures and pictures of captions, and score them."""
    how = stage.request.resampling
    field = stage.field(lambda name: looked_at(stage, name))
    captions = [caption for example in stage.examples for caption in example.captions]
    owner = [row for row, example in enumerate(stage.examples) for _ in example.captions]
    first: dict[str, str] = {}

    @cache
    def tallies(title: str) -> list[Tally]:
        system = field.all[title]
        assert isinstance(system, Ranked)
        images, texts = system.images(stage.examples), system.ranker.embed_text(captions)
        if title == field.main.name:
            best = (images @ texts.T).argmax(axis=1)
            first.update({e.id: captions[n] for e, n in zip(stage.examples, best, strict=True)})
        return retrieval_tallies(images, texts, owner, at=_AT)

    rows = {title: scored(tallies(title), how) for title in field.all}
    chance = chance_of_retrieval([len(example.captions) for example in stage.examples], _AT)
    rows[CHANCE] = scored(chance, how)
    title = f"{len(stage.examples)} pictures and {len(captions)} captions, each among all others"
    if several := sum(n for n in Counter(captions).values() if n > 1):
        stage.notes.append(
            f"{several} captions occur more than once, word for word; that of another picture "
            "counts as wrong."
        )
    report = stage.report(field, [Table(title, rows)], tallies)
    return Evaluation(report, first, "captions")
